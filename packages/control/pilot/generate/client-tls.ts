import type { ClientTlsSpec, DestinationRuleSpec, TrafficPolicySpec } from '@mizzen/api';

/** All TLS settings of a DestinationRule. */
export function clientTlsOf(rule: DestinationRuleSpec): ClientTlsSpec[] {
  const of = (policy: TrafficPolicySpec | undefined) => [policy?.tls, ...(policy?.portLevelSettings ?? []).map(({ tls }) => tls)];
  return [...of(rule.trafficPolicy), ...(rule.subsets ?? []).flatMap(({ trafficPolicy }) => of(trafficPolicy))].filter((tls) => tls !== undefined);
}

/** The names (SDS) of the secrets with the client's certificate and with the roots for its servers. */
export function clientSecretNames(tls: ClientTlsSpec, namespace: string) {
  const name = (secret: string) => `kubernetes://${namespace}/${secret}`;
  const roots = tls.caCertCredentialName ?? tls.credentialName;
  return {
    certificate: tls.mode === 'MUTUAL' && tls.credentialName ? name(tls.credentialName) : undefined,
    roots: roots && !tls.insecureSkipVerify ? `${name(roots)}-cacert` : undefined,
  };
}

export function clientSecrets(tls: ClientTlsSpec, namespace: string): string[] {
  const { certificate, roots } = clientSecretNames(tls, namespace);
  return [certificate, roots].filter((name) => name !== undefined);
}
