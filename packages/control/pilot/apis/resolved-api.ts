import type { Any } from '@bufbuild/protobuf/wkt';
import type { ApiSpec, HttpRouteSpec, VirtualServiceSpec } from '@mizzen/api';
import type { Configured } from '../snapshot.ts';
import { type PolicySources, policyConfigs } from './api-policies.ts';

/** An Api with everything that it refers to, as routes: it is generated, checked and explained the way a VirtualService is. */
export interface ResolvedApi {
  readonly api: Configured<ApiSpec>;
  /** Bound to gateways, or to the mesh for APIs of others; for sidecars to nothing. */
  readonly virtualService: Configured<VirtualServiceSpec>;
  readonly filterConfigs: Readonly<Record<string, Any>>;
  /** The generic secrets that `filterConfigs` names. They travel by SDS alone (../generate/generic-secrets.ts). */
  readonly secrets: ReadonlyMap<string, Uint8Array>;
  readonly hasGlobalLimits: boolean;
}

export function resolveApi(api: Configured<ApiSpec>, sources: PolicySources): ResolvedApi {
  const { spec } = api;
  const { configs: filterConfigs, secrets } = policyConfigs(api, sources);
  const { service, port, subset } = spec.upstream;
  const policies = spec.policies ?? {};
  const versionMatch = spec.versionHeader === undefined ? {} : { headers: { [spec.versionHeader.toLowerCase()]: { exact: spec.version! } } };
  const { path, headers, host } = policies.transform ?? {};
  const http = (spec.paths?.length ? spec.paths : ['/']).map((prefix): HttpRouteSpec => {
    const { rewrite, uri } = { rewrite: path === undefined && host === undefined ? undefined : rewriteOf(path, host), uri: segmentPrefix(prefix) };
    return {
      name: [api.name, spec.version].filter(Boolean).join('@'),
      match: [{ ...(uri === undefined ? {} : { uri }), ...versionMatch }],
      route: [{ destination: { host: service, ...(port === undefined ? {} : { port: { number: port } }), ...(subset === undefined ? {} : { subset }) } }],
      ...(rewrite === undefined ? {} : { rewrite }),
      ...(headers === undefined ? {} : { headers }),
      ...(policies.timeout === undefined ? {} : { timeout: policies.timeout }),
      ...(policies.retries === undefined ? {} : { retries: policies.retries }),
      ...(policies.cors === undefined ? {} : { corsPolicy: policies.cors }),
      filterConfigs,
    };
  });
  const gateways =
    spec.placement === 'client'
      ? ['mesh']
      : spec.placement === 'sidecar'
        ? [sidecarGateway]
        : [...(spec.gateways ?? []), ...(spec.placement === 'both' ? [sidecarGateway] : [])];
  return {
    api,
    virtualService: { ...api, spec: { hosts: spec.hosts, gateways, http, ...(spec.placement === 'client' ? { exportTo: ['.'] } : {}) } },
    filterConfigs,
    secrets,
    hasGlobalLimits: policies.rateLimits?.some((limit) => limit.scope === 'global') ?? false,
  };
}

/** Stands in for the gateway where the service's own sidecar answers; no Gateway can have this name. */
export const sidecarGateway = '*/sidecar';

function rewriteOf(path: NonNullable<NonNullable<ApiSpec['policies']>['transform']>['path'], host: string | undefined): NonNullable<HttpRouteSpec['rewrite']> {
  return {
    ...(path?.replacePrefix === undefined ? {} : { uri: path.replacePrefix }),
    ...(path?.regex === undefined ? {} : { uriRegexRewrite: { match: path.regex, rewrite: path.substitution ?? '' } }),
    ...(host === undefined ? {} : { authority: host }),
  };
}

/** A prefix that ends where a segment does: `/reviews` is not `/reviewsandmore`. */
function segmentPrefix(prefix: string): { readonly segments: string } | undefined {
  return prefix === '/' ? undefined : { segments: prefix.replace(/\/$/, '') };
}
