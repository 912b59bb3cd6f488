import { parseDurationMs, passwordHashLimits, readPasswordHash } from '@mizzen/common';
import type { Problem } from '../resource.ts';
import type { ApiPoliciesSpec, ApiSpec, CredentialSpec } from '../types/api.ts';
import { collect, durationProblem, hostProblem, invalid, rangeProblem } from './checks.ts';
import { ownedHeaderProblem } from './owned-header.ts';
import { regexProblem } from './regex.ts';

const headerName = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const globalPeriods = new Set([1_000, 60_000, 3_600_000, 86_400_000]);

export function apiProblems(spec: ApiSpec): Problem[] {
  const problems = collect(...(spec.hosts ?? []).map((host, i) => hostProblem(host, `spec.hosts[${i}]`)));
  for (const [i, path] of (spec.paths ?? []).entries())
    if (!/^\/[^?#\s]*$/.test(path)) problems.push(invalid(`spec.paths[${i}]`, `${JSON.stringify(path)} is no path: it begins with / and has no query`));
  const isEdge = spec.placement === 'edge' || spec.placement === 'both';
  const isSidecar = spec.placement === 'sidecar' || spec.placement === 'both';
  if (isEdge && !spec.gateways?.length) problems.push(invalid('spec.gateways', 'an API at the edge needs the gateways that answer for it'));
  if (!isEdge && spec.gateways?.length)
    problems.push(invalid('spec.gateways', `with placement ${spec.placement} no gateway answers: leave it out, or use edge or both`));
  if (isSidecar && !spec.listener) problems.push(invalid('spec.listener', 'an API in the sidecar needs the public port to listen on'));
  if (!isSidecar && spec.listener)
    problems.push(invalid('spec.listener', `with placement ${spec.placement} sidecars open no public port: leave it out, or use sidecar or both`));
  if (spec.versionHeader && !spec.version) problems.push(invalid('spec.versionHeader', 'it needs the version that requests must name'));
  const policies = spec.policies ?? {};
  if (policies.validation && !spec.openapi)
    problems.push(invalid('spec.policies.validation', 'requests are validated by the document in spec.openapi, which is missing'));
  if (policies.credential && spec.placement !== 'client')
    problems.push(invalid('spec.policies.credential', "a credential is added to calls of somebody else's API: it needs placement client"));
  return [...problems, ...policyProblems(policies), ...loginProblems(spec)];
}

function loginProblems({ paths = ['/'], placement, policies = {} }: ApiSpec): Problem[] {
  const { login } = policies;
  if (login === undefined) return [];
  const at = 'spec.policies.login';
  const problems = [...collect(durationProblem(login.sessionDuration, `${at}.sessionDuration`))];
  if (placement === 'client') problems.push(invalid(at, 'people log in at gateways and public ports: placement client has neither'));
  if (policies.authentication) problems.push(invalid(at, 'a request shows a login or a credential: use login or authentication, or two Apis'));
  if (!/^https?:\/\/[^?#]+$/.test(login.issuer)) problems.push(invalid(`${at}.issuer`, `${JSON.stringify(login.issuer)} is no issuer: a URL without query`));
  for (const field of ['callbackPath', 'logoutPath'] as const) {
    const path = login[field];
    if (path !== undefined && !/^\/[^?#\s]*$/.test(path))
      problems.push(invalid(`${at}.${field}`, `${JSON.stringify(path)} is no path: it begins with / and has no query`));
    else if (!paths.some((prefix) => isBelow(path ?? defaultLoginPaths[field], prefix)))
      problems.push(invalid(`${at}.${field}`, `${path ?? defaultLoginPaths[field]} is none of this API's paths: no request would come there`));
  }
  problems.push(...claimHeaderProblems(login.claimToHeader, `${at}.claimToHeader`));
  return problems;
}

const claimHeaderProblems = (claimToHeader: Readonly<Record<string, string>> | undefined, path: string) =>
  collect(...Object.entries(claimToHeader ?? {}).map(([claim, header]) => ownedHeaderProblem(header, `${path}.${claim}`)));

const defaultLoginPaths = { callbackPath: '/oauth2/callback', logoutPath: '/oauth2/logout' } as const;

const isBelow = (path: string, prefix: string) => prefix === '/' || path === prefix || path.startsWith(prefix.endsWith('/') ? prefix : `${prefix}/`);

function policyProblems(policies: ApiPoliciesSpec): Problem[] {
  const at = 'spec.policies';
  const problems: Problem[] = [];
  const { authentication, rateLimits = [], cache, timeout, transform, transcoding, credential } = policies;
  problems.push(...accessProblems(policies, at));
  if (authentication && !authentication.apiKey && !authentication.basic && !authentication.hmac && !authentication.jwt?.length)
    problems.push(invalid(`${at}.authentication`, 'it names no kind of credential: apiKey, basic, hmac or jwt'));
  for (const [i, provider] of (authentication?.jwt ?? []).entries()) {
    const place = `${at}.authentication.jwt[${i}]`;
    if (!provider.jwks && !provider.jwksUri) problems.push(invalid(place, 'the keys of the issuer are missing: jwks or jwksUri'));
    if (provider.jwksUri && !/^https?:\/\/./.test(provider.jwksUri))
      problems.push(invalid(`${place}.jwksUri`, `${JSON.stringify(provider.jwksUri)} is no URL`));
    problems.push(...claimHeaderProblems(provider.claimToHeader, `${place}.claimToHeader`));
    if (provider.jwks && !isJwks(provider.jwks)) problems.push(invalid(`${place}.jwks`, 'it is no JSON Web Key Set: {"keys": [...]}'));
  }
  for (const [i, limit] of rateLimits.entries()) {
    const place = `${at}.rateLimits[${i}]`;
    const perMs = parseDurationMs(limit.per);
    if (perMs === undefined || perMs < 1) problems.push(invalid(`${place}.per`, `${JSON.stringify(limit.per)} is no duration: write 1s, 1m or 1h`));
    else if (limit.scope === 'global' && !globalPeriods.has(perMs)) problems.push(invalid(`${place}.per`, 'global limits are per 1s, 1m, 1h or 24h'));
    if ((limit.by === 'header' || limit.by === 'claim') !== (limit.key !== undefined))
      problems.push(invalid(`${place}.key`, limit.key === undefined ? `which ${limit.by}?` : 'only limits by header or claim have a key'));
    if (limit.by === 'claim' && !authentication?.jwt?.length) problems.push(invalid(`${place}.by`, 'claims come from tokens: it needs authentication.jwt'));
  }
  problems.push(...collect(durationProblem(timeout, `${at}.timeout`), durationProblem(cache?.defaultTtl, `${at}.cache.defaultTtl`, 0)));
  for (const [i, filter] of (policies.filters ?? []).entries()) problems.push(...collect(durationProblem(filter.timeout, `${at}.filters[${i}].timeout`)));
  if (transform?.path?.regex !== undefined) problems.push(...collect(regexProblem(transform.path.regex, `${at}.transform.path.regex`)));
  if (transcoding && !transcoding.file && !transcoding.configMap)
    problems.push(invalid(`${at}.transcoding`, 'the descriptor set is missing: file or configMap'));
  if (credential && credential.header === undefined && credential.queryParameter === undefined)
    problems.push(invalid(`${at}.credential`, 'where is it put: header or queryParameter?'));
  for (const [path, name] of [
    ...(authentication?.apiKey?.headers ?? []).map((header, i) => [`${at}.authentication.apiKey.headers[${i}]`, header] as const),
    ...(credential?.header === undefined ? [] : [[`${at}.credential.header`, credential.header] as const]),
  ])
    if (!headerName.test(name)) problems.push(invalid(path, `${JSON.stringify(name)} cannot be the name of a header`));
  return problems;
}

/** An empty list would let every caller in, which is the opposite of what it says. */
function accessProblems({ ipAccess, authentication }: ApiPoliciesSpec, at: string): Problem[] {
  const problems: Problem[] = [];
  const { allow } = authentication ?? {};
  if (allow && !allow.consumers?.length && !allow.groups?.length)
    problems.push(invalid(`${at}.authentication.allow`, 'names no consumer and no group: leave it out to allow every authenticated caller'));
  if (ipAccess && !ipAccess.allow?.length && (ipAccess.allow || !ipAccess.deny?.length))
    problems.push(invalid(`${at}.ipAccess`, 'names no address: leave allow out to allow all that are not denied'));
  for (const field of ['allow', 'deny'] as const)
    for (const [i, range] of (ipAccess?.[field] ?? []).entries()) problems.push(...collect(rangeProblem(range, `${at}.ipAccess.${field}[${i}]`)));
  return problems;
}

function isJwks(text: string): boolean {
  try {
    return Array.isArray((JSON.parse(text) as { keys?: unknown }).keys);
  } catch {
    return false;
  }
}

export function credentialProblems(spec: CredentialSpec): Problem[] {
  const problems: Problem[] = [];
  if (!spec.apiKey && !spec.basic && !spec.hmac && !spec.jwt) problems.push(invalid('spec', 'it is of no kind: apiKey, basic, hmac or jwt'));
  if (spec.apiKey && !/^[0-9a-f]{64}$/i.test(spec.apiKey.sha256))
    problems.push(
      invalid(
        'spec.apiKey.sha256',
        'it is no SHA-256 in 64 hex digits. The key itself is not stored: `mizzen credential issue` makes one, shows it once, and stores its hash',
      ),
    );
  if (spec.basic && readPasswordHash(spec.basic.passwordHash) === undefined)
    problems.push(
      invalid(
        'spec.basic.passwordHash',
        `it is no scrypt hash with N of ${passwordHashLimits.minN} to ${passwordHashLimits.maxN} and at least ${passwordHashLimits.minHashBytes} bytes. The password itself is not stored: \`mizzen credential issue --kind basic\` stores its hash`,
      ),
    );
  if (spec.expires !== undefined && Number.isNaN(Date.parse(spec.expires)))
    problems.push(invalid('spec.expires', `${JSON.stringify(spec.expires)} is no time: write 2027-01-31T00:00:00Z`));
  return problems;
}
