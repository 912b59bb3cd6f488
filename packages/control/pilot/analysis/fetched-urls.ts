import { isPlainObject, type Resource } from '@mizzen/api';
import { messageOf } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';

/**
 * URLs in an Api that its gateways fetch, held to the same policy as those that the control plane fetches, as far as their hosts are addresses or
 * names of this machine. Returns why one is refused, with its place; undefined: none is.
 */
export function refusedUrl(resource: Resource, policy: FetchPolicy): string | undefined {
  if (resource.kind !== 'Api') return undefined;
  const field = (value: unknown, name: string): unknown => (isPlainObject(value) ? value[name] : undefined);
  const policies = field(field(resource, 'spec'), 'policies');
  const providers = field(field(policies, 'authentication'), 'jwt');
  const urls: [path: string, url: unknown][] = [
    ['spec.policies.login.issuer', field(field(policies, 'login'), 'issuer')],
    ...(Array.isArray(providers) ? providers : []).map((provider, i): [string, unknown] => [
      `spec.policies.authentication.jwt[${i}].jwksUri`,
      field(provider, 'jwksUri'),
    ]),
  ];
  for (const [path, url] of urls) {
    if (typeof url !== 'string' || !URL.canParse(url)) continue;
    try {
      policy.lookupFor(url);
    } catch (error) {
      return `${path}: ${messageOf(error)}`;
    }
  }
  return undefined;
}
