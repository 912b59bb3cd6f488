import type { Any } from '@bufbuild/protobuf/wkt';
import type { ApiPoliciesSpec, ApiSpec, FilterReferenceSpec, JwtProviderSpec, LoginSpec, RateLimitSpec, SecretKeySpec } from '@mizzen/api';
import { MizzenError, parseDurationMs } from '@mizzen/common';
import { type Init, packAny } from '@mizzen/envoy-api';
import {
  AuthenticationPerRouteSchema,
  CachePerRouteSchema,
  CredentialPerRouteSchema,
  IpAccessPerRouteSchema,
  type JwtProviderSchema,
  Limit_By,
  type LimitSchema,
  LoginPerRouteSchema,
  RateLimitPerRouteSchema,
  ScriptPerRouteSchema,
  TranscodingPerRouteSchema,
} from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { readTranscodedMethods } from '@mizzen/gateway';
import type { Configured } from '../snapshot.ts';
import type { DocumentReader } from './documents.ts';
import { type ApiSecretUse, apiSecretName, consumerSecretNames, sdsSecret } from './secret-names.ts';
import { validationConfig } from './validation-config.ts';

/** The filters of API policies, in the order in which a request meets them. */
export const policyFilters = {
  ipAccess: 'mizzen.filters.http.ip_access',
  login: 'mizzen.filters.http.login',
  authentication: 'mizzen.filters.http.authentication',
  rateLimit: 'mizzen.filters.http.rate_limit',
  validation: 'mizzen.filters.http.validation',
  script: 'mizzen.filters.http.script',
  cache: 'mizzen.filters.http.cache',
  transcoder: 'mizzen.filters.http.grpc_json_transcoder',
  credential: 'mizzen.filters.http.credential_injector',
} as const;

export interface PolicySources {
  readonly documents: DocumentReader;
  /** Values of Secrets, in base64, by `namespace/name`. */
  readonly secrets: ReadonlyMap<string, Readonly<Record<string, string>>>;
  /** Hosts that gateways may fetch from, wherever they lead (packages/common/fetch-policy.ts). */
  readonly allowedFetchHosts: readonly string[];
}

/** What filters are configured with on the routes of an API. */
export interface PolicyConfigs {
  readonly configs: Readonly<Record<string, Any>>;
  /** The generic secrets that `configs` names, by their names in SDS. */
  readonly secrets: ReadonlyMap<string, Uint8Array>;
}

/** What the policies of an API say to the filters on its routes. Throws MizzenError, with the field, for what cannot be honoured. */
export function policyConfigs(api: Configured<ApiSpec>, sources: PolicySources): PolicyConfigs {
  const { spec } = api;
  const policies: ApiPoliciesSpec = spec.policies ?? {};
  const configs: Record<string, Any> = {};
  const secrets = new Map<string, Uint8Array>();
  /** Puts a value where only SDS takes it from; configurations get its name. */
  const secret = (use: ApiSecretUse, value: string) => {
    const name = apiSecretName(api, use);
    secrets.set(name, Buffer.from(value));
    return sdsSecret(name);
  };
  const originFile = api.originFile;
  if (policies.ipAccess)
    configs[policyFilters.ipAccess] = packAny(IpAccessPerRouteSchema, {
      allow: [...(policies.ipAccess.allow ?? [])],
      deny: [...(policies.ipAccess.deny ?? [])],
    });
  if (policies.login) configs[policyFilters.login] = packAny(LoginPerRouteSchema, login(policies.login, api, sources, secret));
  if (policies.authentication) {
    const { apiKey, basic, hmac, jwt = [], optional, forwardCredentials, allow } = policies.authentication;
    const isPlaced = apiKey?.headers?.length || apiKey?.queryParameters?.length;
    configs[policyFilters.authentication] = packAny(AuthenticationPerRouteSchema, {
      ...(apiKey ? { apiKey: { headers: isPlaced ? [...(apiKey.headers ?? [])] : ['x-api-key'], queryParameters: [...(apiKey.queryParameters ?? [])] } } : {}),
      ...(basic ? { basic: { realm: basic.realm ?? spec.hosts[0] ?? 'api' } } : {}),
      ...(hmac ? { hmac: { clockSkewSeconds: hmac.clockSkewSeconds ?? 0, requiresDigest: hmac.requiresDigest ?? false } } : {}),
      jwt: jwt.map((provider) => jwtProvider(provider, sources)),
      consumers: consumerSecretNames(api).map(sdsSecret),
      namespace: api.namespace,
      allowsAnonymous: optional ?? false,
      forwardsCredentials: forwardCredentials ?? false,
      allowedConsumers: (allow?.consumers ?? []).map((name) => (name.includes('/') ? name : `${api.namespace}/${name}`)),
      allowedGroups: [...(allow?.groups ?? [])],
    });
  }
  if (policies.rateLimits?.length)
    configs[policyFilters.rateLimit] = packAny(RateLimitPerRouteSchema, { limits: policies.rateLimits.map((limit, i) => rateLimit(limit, i, api)) });
  if (policies.validation) {
    const { basePath, maxBodyBytes, allowUnknown } = policies.validation;
    configs[policyFilters.validation] = validationConfig(
      openApiSource(api, sources.documents),
      { basePath, maxBodyBytes: maxBodyBytes ?? 0, allowsUnknown: allowUnknown ?? false },
      'spec.openapi',
    );
  }
  if (policies.filters?.length) configs[policyFilters.script] = scriptConfig(policies.filters, (file) => sources.documents.filterOf(file, originFile));
  if (policies.cache) {
    const { defaultTtl, maxBodyBytes, maxBytes } = policies.cache;
    configs[policyFilters.cache] = packAny(CachePerRouteSchema, {
      defaultTtlMs: (defaultTtl && parseDurationMs(defaultTtl)) || 0,
      maxBodyBytes: maxBodyBytes ?? 0,
      maxBytes: BigInt(maxBytes ?? 0),
    });
  }
  if (policies.transcoding) {
    const { services, maxBodyBytes } = policies.transcoding;
    let descriptorSet = sources.documents.read(policies.transcoding, api.namespace, originFile);
    // A ConfigMap holds text.
    if (policies.transcoding.configMap) descriptorSet = Buffer.from(descriptorSet.toString(), 'base64');
    readTranscodedMethods(descriptorSet, services, 'spec.policies.transcoding');
    configs[policyFilters.transcoder] = packAny(TranscodingPerRouteSchema, { descriptorSet, services: [...services], maxBodyBytes: maxBodyBytes ?? 0 });
  }
  if (policies.credential) {
    const { header, queryParameter, prefix, secret: source } = policies.credential;
    configs[policyFilters.credential] = packAny(CredentialPerRouteSchema, {
      header: header ?? '',
      queryParameter: queryParameter ?? '',
      value: secret('credential', `${prefix ?? ''}${secretText(source, 'spec.policies.credential.secret', api, sources)}`),
    });
  }
  return { configs, secrets };
}

/** A value of a Secret in the API's namespace, without the blanks around it. */
function secretText({ name, key }: SecretKeySpec, field: string, { namespace }: Configured<ApiSpec>, { secrets }: PolicySources): string {
  const value = secrets.get(`${namespace}/${name}`)?.[key];
  if (value === undefined) throw new MizzenError('no-secret', `${field}: the Secret ${namespace}/${name} does not exist, or has no key ${JSON.stringify(key)}`);
  return Buffer.from(value, 'base64').toString('utf8').trim();
}

const minCookieSecretBytes = 32;
const defaultSessionSeconds = 8 * 60 * 60;

function login(
  spec: LoginSpec,
  api: Configured<ApiSpec>,
  sources: PolicySources,
  secret: (use: ApiSecretUse, value: string) => ReturnType<typeof sdsSecret>,
): Init<typeof LoginPerRouteSchema> {
  const at = 'spec.policies.login';
  const cookieSecret = secretText(spec.cookieSecret, `${at}.cookieSecret`, api, sources);
  if (Buffer.byteLength(cookieSecret) < minCookieSecretBytes)
    throw new MizzenError('invalid-secret', `${at}.cookieSecret: the value has less than ${minCookieSecretBytes} bytes: openssl rand -base64 32 makes one`);
  return {
    name: `${api.namespace}/${api.name}`,
    issuer: spec.issuer,
    clientId: spec.clientId,
    ...(spec.clientSecret === undefined ? {} : { clientSecret: secret('login.client', secretText(spec.clientSecret, `${at}.clientSecret`, api, sources)) }),
    cookieSecret: secret('login.cookie', cookieSecret),
    scopes: [...new Set(['openid', ...(spec.scopes ?? ['profile', 'email'])])],
    callbackPath: spec.callbackPath ?? '/oauth2/callback',
    logoutPath: spec.logoutPath ?? '/oauth2/logout',
    forwardsAccessToken: spec.forwardAccessToken ?? false,
    claimToHeader: { ...spec.claimToHeader },
    allowedFetchHosts: [...sources.allowedFetchHosts],
    sessionSeconds: spec.sessionDuration === undefined ? defaultSessionSeconds : Math.ceil((parseDurationMs(spec.sessionDuration) ?? 0) / 1_000),
  };
}

export function scriptConfig(filters: readonly FilterReferenceSpec[], fileOf: (file: string) => string): Any {
  return packAny(ScriptPerRouteSchema, {
    scripts: filters.map(({ file, config, timeout }) => ({
      file: fileOf(file),
      ...(config === undefined ? {} : { config: config as never }),
      timeoutMs: (timeout && parseDurationMs(timeout)) || 0,
    })),
  });
}

function jwtProvider(provider: JwtProviderSpec, { allowedFetchHosts }: PolicySources): Init<typeof JwtProviderSchema> {
  const { jwks, jwksUri } = provider;
  return {
    name: provider.name ?? provider.issuer,
    issuer: provider.issuer,
    audiences: [...(provider.audiences ?? [])],
    keys: jwks === undefined ? { case: 'jwksUri', value: jwksUri! } : { case: 'jwks', value: jwks },
    headers: [...(provider.headers ?? (provider.queryParameters?.length ? [] : ['authorization']))],
    queryParameters: [...(provider.queryParameters ?? [])],
    clockSkewSeconds: provider.clockSkewSeconds ?? 0,
    claimToHeader: { ...provider.claimToHeader },
    consumerClaim: provider.consumerClaim ?? '',
    groupsClaim: provider.groupsClaim ?? '',
    allowedFetchHosts: jwks === undefined ? [...allowedFetchHosts] : [],
  };
}

const limitedBy = { all: Limit_By.ALL, consumer: Limit_By.CONSUMER, ip: Limit_By.IP, header: Limit_By.HEADER, claim: Limit_By.CLAIM } as const;

function rateLimit(limit: RateLimitSpec, index: number, api: Configured<ApiSpec>): Init<typeof LimitSchema> {
  return {
    // Two APIs' limits of one name are two limits.
    name: `${api.namespace}/${api.name}/${limit.name ?? index}`,
    by: limitedBy[limit.by ?? 'all'],
    key: limit.key ?? '',
    requests: limit.requests,
    perMs: parseDurationMs(limit.per) ?? 1_000,
    burst: limit.burst ?? 0,
    isGlobal: limit.scope === 'global',
    failsClosed: limit.failClosed ?? false,
  };
}

/** The OpenAPI document as it was written: JSON or YAML. */
function openApiSource(api: Configured<ApiSpec>, documents: DocumentReader): string {
  const { openapi } = api.spec;
  if (openapi?.inline) return JSON.stringify(openapi.inline);
  return documents.read(openapi ?? {}, api.namespace, api.originFile).toString('utf8');
}
