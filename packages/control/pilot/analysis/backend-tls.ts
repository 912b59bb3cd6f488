import { describeOrigin } from '@mizzen/common';
import { destinationRuleFor, effectivePolicy } from '../generate/destination-policy.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/** BackendTLSPolicies by which no connection is encrypted: their target does not exist, another policy is older, or a DestinationRule decides. */
export function backendTlsFindings(snapshot: MeshSnapshot): Finding[] {
  const taken = new Map<string, string>();
  return snapshot.gatewayApi.backendTlsPolicies.flatMap(({ namespace, name, spec, origin }) => {
    const object = `BackendTLSPolicy ${namespace}/${name}`;
    return (spec.targetRefs ?? []).flatMap((ref, i): Finding[] => {
      const path = `spec.targetRefs[${i}]`;
      const report = (message: string): Finding[] => [
        {
          ...{ code: 'MZ0024', level: 'warning', object, path },
          place: origin.source === 'file' ? describeOrigin(origin, path) : '',
          message: `${object} has no effect at ${path}: ${message}.`,
        },
      ];
      const service = snapshot.servicesByHostname.get(`${ref.name}.${namespace}.svc.${snapshot.domain}`);
      if (service === undefined) return report(`the Service ${namespace}/${ref.name} does not exist`);
      const ports = service.ports.filter((port) => ref.sectionName === undefined || port.name === ref.sectionName);
      if (ports.length === 0) return report(`the Service ${namespace}/${ref.name} has no port named ${ref.sectionName}`);
      const key = `${namespace}/${ref.name}/${ref.sectionName ?? ''}`;
      const older = taken.get(key);
      taken.set(key, older ?? object);
      if (older !== undefined) return report(`${older}, which is older, has the same target`);
      const rule = destinationRuleFor(service, { namespace, labels: {} }, snapshot);
      const overridden = rule && ports.find((port) => effectivePolicy(rule.spec, undefined, port.number).tls !== undefined);
      return overridden === undefined ? [] : report(`the TLS settings of the DestinationRule ${rule!.namespace}/${rule!.name} are in effect instead`);
    });
  });
}
