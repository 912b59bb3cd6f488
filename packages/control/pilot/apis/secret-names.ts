import type { ApiSpec } from '@mizzen/api';
import type { Init } from '@mizzen/envoy-api';
import type { SdsSecretConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { ads } from '../generate/tls-contexts.ts';
import type { Configured } from '../snapshot.ts';

/** The names of generic secrets in SDS. Which proxies are entitled to which: ../generate/generic-secrets.ts. */
export const secretScheme = 'mizzen://';

type Named = Pick<Configured<unknown>, 'namespace' | 'name'>;

/** The secret that a policy of an Api uses. */
export type ApiSecretUse = 'login.client' | 'login.cookie' | 'credential';

export const apiSecretName = ({ namespace, name }: Named, use: ApiSecretUse) => `${secretScheme}api/${namespace}/${name}/${use}`;

export const componentSecretName = ({ namespace, name }: Named, field: string) => `${secretScheme}component/${namespace}/${name}/${field}`;

/** The consumers that an Api authenticates: those of its namespace, and those elsewhere that it allows by name. */
export function consumerSecretNames({ namespace, spec }: Configured<ApiSpec>): string[] {
  const { authentication } = spec.policies ?? {};
  if (authentication === undefined) return [];
  const others = (authentication.allow?.consumers ?? []).filter((name) => /^[^/#]+\/[^/#]+$/.test(name) && !name.startsWith(`${namespace}/`));
  return [`${secretScheme}consumers/${namespace}`, ...[...new Set(others)].sort().map((name) => `${secretScheme}consumers/${name}`)];
}

/** A reference to a secret of SDS on the proxy's own ADS stream. */
export function sdsSecret(name: string): Init<typeof SdsSecretConfigSchema> {
  return { name, sdsConfig: ads };
}
