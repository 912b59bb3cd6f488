import { describeOrigin } from '@mizzen/common';
import { servedGateways } from '../generate/served-gateways.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import { type MeshSnapshot, rootNamespace } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/** Gateways that select a connected gateway of another namespace alone, which does not serve them without a grant. */
export function gatewayWorkloadFindings(snapshot: MeshSnapshot, views: readonly ProxyView[]): Finding[] {
  const gateways = views.filter(({ type, isProven }) => type === 'gateway' && isProven);
  const served = new Set(gateways.flatMap((view) => servedGateways(view, snapshot)));
  return snapshot.gateways.flatMap((gateway): Finding[] => {
    const { spec, namespace, name, origin } = gateway;
    if (served.has(gateway) || spec.isForOwnNamespace) return [];
    const selected = gateways.find((view) => view.namespace !== namespace && view.namespace !== rootNamespace && selects(spec.selector, view.labels));
    if (selected === undefined) return [];
    const object = `Gateway ${namespace}/${name}`;
    const who = `${selected.namespace}/${selected.name}`;
    return [
      {
        code: 'MZ0023',
        level: 'warning',
        object,
        path: 'spec.selector',
        place: origin.source === 'file' ? describeOrigin(origin, 'spec.selector') : '',
        message:
          `${object} selects the gateway ${who} of another namespace, which does not serve it without a ReferenceGrant in ${namespace}: ` +
          `from group mizzen.dev, kind Workload, namespace ${selected.namespace}, to group networking.istio.io, kind Gateway (and to Secret for its certificates).`,
      },
    ];
  });
}
