import type { ConsumerSpec, CredentialSpec } from '@mizzen/api';
import { describeOrigin } from '@mizzen/common';
import type { Init } from '@mizzen/envoy-api';
import type { ConsumerListSchema, CredentialSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { Finding } from '../analysis/finding.ts';
import type { Configured } from '../snapshot.ts';

export type ConsumerTable = Init<typeof ConsumerListSchema>;

/** All consumers with their credentials, as SDS gives them to proxies. Credentials without a consumer or a secret are left out and reported. */
export function consumerTable(
  consumers: readonly Configured<ConsumerSpec>[],
  credentials: readonly Configured<CredentialSpec>[],
  secrets: ReadonlyMap<string, Readonly<Record<string, string>>>,
): { readonly table: ConsumerTable; readonly findings: readonly Finding[] } {
  const findings: Finding[] = [];
  const byConsumer = new Map<string, Init<typeof CredentialSchema>[]>(consumers.map(({ namespace, name }) => [`${namespace}/${name}`, []]));
  /** The credential that is found by a name or key: of several the newest. */
  const holders = new Map(credentials.map(({ namespace, name, spec }) => [`${namespace}/${knownBy(spec)}`, name]));
  for (const credential of credentials) {
    const { namespace, name, spec, origin } = credential;
    const report = (path: string, message: string) =>
      findings.push({
        code: 'MZ0004',
        level: 'error',
        object: `Credential ${namespace}/${name}`,
        path,
        place: origin.source === 'file' ? describeOrigin(origin) : '',
        message: `Credential ${namespace}/${name} is not in effect: ${message}`,
      });
    const list = byConsumer.get(`${namespace}/${spec.consumer}`);
    if (list === undefined) {
      report('spec.consumer', `there is no Consumer "${spec.consumer}" in namespace ${namespace}.`);
      continue;
    }
    const known = knownBy(spec);
    const newest = holders.get(`${namespace}/${known}`);
    if (newest !== name) {
      report('spec', `the Credential "${newest}", which is newer, has the same ${known.slice(0, known.indexOf(' '))}.`);
      continue;
    }
    const common = { name: `${namespace}/${name}`, expiresAtMs: spec.expires === undefined ? 0n : BigInt(Date.parse(spec.expires)) };
    if (spec.apiKey) list.push({ ...common, kind: { case: 'apiKey', value: { sha256: Buffer.from(spec.apiKey.sha256, 'hex') } } });
    else if (spec.basic) list.push({ ...common, kind: { case: 'basic', value: { username: spec.basic.username, passwordHash: spec.basic.passwordHash } } });
    else if (spec.jwt) list.push({ ...common, kind: { case: 'jwt', value: { ...spec.jwt } } });
    else if (spec.hmac) {
      const secret = secrets.get(`${namespace}/${spec.hmac.secret.name}`)?.[spec.hmac.secret.key];
      if (secret === undefined) report('spec.hmac.secret', `the Secret "${spec.hmac.secret.name}" does not exist, or has no key "${spec.hmac.secret.key}".`);
      else list.push({ ...common, kind: { case: 'hmac', value: { keyId: spec.hmac.keyId, secret: Buffer.from(secret, 'base64') } } });
    }
  }
  return {
    table: {
      consumers: consumers.map(({ namespace, name, spec }) => ({
        name: `${namespace}/${name}`,
        groups: [...(spec.groups ?? [])],
        credentials: byConsumer.get(`${namespace}/${name}`)!,
      })),
    },
    findings,
  };
}

/** What a caller shows, by which a credential is found. */
function knownBy({ apiKey, basic, hmac, jwt }: CredentialSpec): string {
  if (apiKey) return `key ${apiKey.sha256.toLowerCase()}`;
  if (basic) return `username ${basic.username}`;
  return hmac ? `keyId ${hmac.keyId}` : `subject ${jwt?.issuer}#${jwt?.subject}`;
}
