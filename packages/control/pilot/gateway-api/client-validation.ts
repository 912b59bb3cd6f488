import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { problemOfRoots } from '../trusted-roots.ts';
import { isGranted, refText } from './references.ts';
import type { GatewayApiResources } from './resources.ts';
import { type Condition, failed, type K8sGatewaySpec, type ListenerSpec } from './types.ts';

/** Istio's option for listeners that end TLS (istio pilot/pkg/config/kube/gateway `gatewayTLSTerminateModeKey`). */
const terminateModeOption = 'gateway.istio.io/tls-terminate-mode';

/**
 * Whether clients of a listener present a certificate, and which roots it must lead to: what `spec.tls.frontend` of the Gateway says of the port or of
 * all ports, and what the listener's own `tls.options` say. A listener whose clients cannot be verified as written is not served.
 */
export interface ClientValidation {
  readonly mode: 'SIMPLE' | 'MUTUAL' | 'OPTIONAL_MUTUAL' | 'ISTIO_MUTUAL';
  /** PEM; undefined: those of the listener's Secret, where a certificate is demanded. */
  readonly roots: string | undefined;
  /** For the condition Accepted. */
  readonly notAccepted: Condition | undefined;
  /** For the condition ResolvedRefs. */
  readonly unresolved: Condition | undefined;
}

const unverified: ClientValidation = { mode: 'SIMPLE', roots: undefined, notAccepted: undefined, unresolved: undefined };

export function clientValidationOf(
  gateway: Configured<K8sGatewaySpec>,
  owner: Configured<unknown>,
  spec: ListenerSpec,
  terminates: boolean,
  resources: GatewayApiResources,
  snapshot: MeshSnapshot,
): ClientValidation {
  const refuse = (message: string): ClientValidation => ({ ...unverified, notAccepted: failed('Accepted', 'UnsupportedValue', message) });
  const options = Object.entries((spec.tls?.options ?? {}) as Readonly<Record<string, unknown>>);
  const unknown = options.find(([name]) => name !== terminateModeOption);
  if (unknown !== undefined) return refuse(`the TLS option ${unknown[0]} is not supported: only ${terminateModeOption} is`);
  const option = options[0]?.[1];
  if (option !== undefined && !terminates) return refuse(`the TLS option ${terminateModeOption} has no effect on a listener that does not end TLS`);
  if (option !== undefined && option !== 'SIMPLE' && option !== 'MUTUAL' && option !== 'OPTIONAL_MUTUAL' && option !== 'ISTIO_MUTUAL')
    return refuse(`${terminateModeOption}: ${JSON.stringify(option)} is not supported: SIMPLE, MUTUAL, OPTIONAL_MUTUAL or ISTIO_MUTUAL`);
  if (!terminates) return unverified;
  const frontend = gateway.spec.tls?.frontend;
  const forPort = frontend?.perPort?.find((one) => one.port === spec.port);
  const validation = (forPort === undefined ? frontend?.default : forPort.tls)?.validation;
  if (validation) {
    if (option === 'ISTIO_MUTUAL')
      return refuse(`${terminateModeOption}: ISTIO_MUTUAL verifies clients by the mesh's roots and cannot be combined with tls.frontend`);
    const isOptional = validation.mode === 'AllowInsecureFallback' && option !== 'MUTUAL';
    return { ...frontendRoots(gateway, validation.caCertificateRefs ?? [], resources, snapshot), mode: isOptional ? 'OPTIONAL_MUTUAL' : 'MUTUAL' };
  }
  if (option === 'MUTUAL' || option === 'OPTIONAL_MUTUAL') {
    const problem = secretRootsProblem(owner, spec, snapshot);
    return { ...unverified, mode: option, unresolved: problem === undefined ? undefined : failed('ResolvedRefs', 'InvalidCertificateRef', problem) };
  }
  return { ...unverified, mode: option ?? 'SIMPLE' };
}

type Frontend = NonNullable<NonNullable<K8sGatewaySpec['tls']>['frontend']>;
type References = NonNullable<NonNullable<NonNullable<Frontend['default']>['validation']>['caCertificateRefs']>;

/** All references count. One that cannot be used is named; without any that can, the listener is not accepted. */
function frontendRoots(gateway: Configured<K8sGatewaySpec>, refs: References, resources: GatewayApiResources, snapshot: MeshSnapshot): ClientValidation {
  const roots: string[] = [];
  const problems: Condition[] = [];
  for (const ref of refs) {
    const { group = '', kind = 'ConfigMap', name, namespace = gateway.namespace } = ref;
    if (group !== '' || kind !== 'ConfigMap') {
      problems.push(failed('ResolvedRefs', 'InvalidCACertificateKind', `roots of clients are in ConfigMaps, not in ${refText(ref)}`));
      continue;
    }
    if (!isGranted({ kind: 'Gateway', namespace: gateway.namespace }, { group: '', kind, namespace, name }, resources)) {
      const message = `no ReferenceGrant in namespace ${namespace} lets a Gateway of ${gateway.namespace} refer to the ConfigMap ${name}`;
      problems.push(failed('ResolvedRefs', 'RefNotPermitted', message));
      continue;
    }
    const data = snapshot.configMaps.get(`${namespace}/${name}`);
    const pem = data?.['ca.crt'];
    const problem = data === undefined ? 'does not exist' : pem === undefined ? 'has no key ca.crt' : problemOfRoots(pem);
    if (problem === undefined && pem !== undefined) roots.push(pem);
    else problems.push(failed('ResolvedRefs', 'InvalidCACertificateRef', `the ConfigMap ${namespace}/${name} ${problem}`));
  }
  const message = problems.map((one) => one.message).join('; ');
  return {
    mode: 'MUTUAL',
    roots: roots.join('\n'),
    notAccepted: roots.length > 0 ? undefined : failed('Accepted', 'NoValidCACertificate', message || 'caCertificateRefs of the client validation is empty'),
    unresolved: problems[0] && { ...problems[0], message },
  };
}

/** As for `credentialName` of an Istio Gateway: `ca.crt` of the Secret with the certificate, or of the Secret of that name with `-cacert`. */
function secretRootsProblem(owner: Configured<unknown>, { tls }: ListenerSpec, snapshot: MeshSnapshot): string | undefined {
  const [ref] = tls?.certificateRefs ?? [];
  if (ref === undefined) return undefined;
  const name = `${ref.namespace ?? owner.namespace}/${ref.name}`;
  const data = snapshot.secrets.get(`${name}-cacert`) ?? snapshot.secrets.get(name);
  const encoded = data?.['ca.crt'] ?? data?.['cacert'];
  const problem = encoded === undefined ? 'is missing' : problemOfRoots(Buffer.from(encoded, 'base64').toString());
  return problem && `${terminateModeOption} demands the roots of clients: ca.crt of the Secret ${name} or ${name}-cacert ${problem}`;
}
