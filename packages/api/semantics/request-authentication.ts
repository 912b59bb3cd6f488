import { createPublicKey, type JsonWebKey } from 'node:crypto';
import type { Problem } from '../resource.ts';
import type { JwtRuleSpec, RequestAuthenticationSpec } from '../types/request-authentication.ts';
import { isPlainObject } from '../validate.ts';
import { collect, durationProblem, invalid } from './checks.ts';
import { ownedHeaderProblem } from './owned-header.ts';
import { selectorProblems } from './policy-selector.ts';

export function requestAuthenticationProblems(spec: RequestAuthenticationSpec): Problem[] {
  return [...selectorProblems(spec), ...(spec.jwtRules ?? []).flatMap((rule, i) => ruleProblems(rule, `spec.jwtRules[${i}]`))];
}

const headerName = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

function ruleProblems(rule: JwtRuleSpec, path: string): Problem[] {
  const {
    issuer,
    jwksUri,
    jwks,
    outputPayloadToHeader = '',
    audiences = [],
    fromHeaders = [],
    fromParams = [],
    fromCookies = [],
    outputClaimToHeaders = [],
    timeout,
  } = rule;
  const problems: Problem[] = collect(durationProblem(timeout, `${path}.timeout`));
  if (!issuer && !jwksUri && !jwks) problems.push({ code: 'missing-field', path: `${path}.issuer`, message: 'whose tokens? issuer is required' });
  if (jwksUri) problems.push(...uriProblems(jwksUri, `${path}.jwksUri`));
  else if (issuer && !jwks && !isUri(issuer))
    problems.push(invalid(`${path}.issuer`, `where are the keys of ${JSON.stringify(issuer)}? It is no URL at which they could be found: set jwksUri or jwks`));
  if (jwks) problems.push(...keySetProblems(jwks, `${path}.jwks`));
  for (const [field, values] of [
    ['audiences', audiences],
    ['fromParams', fromParams],
    ['fromCookies', fromCookies],
  ] as const)
    for (const [i, value] of values.entries()) if (value === '') problems.push(invalid(`${path}.${field}[${i}]`, 'is empty'));
  for (const [i, { name = '' }] of fromHeaders.entries())
    if (!headerName.test(name)) problems.push(invalid(`${path}.fromHeaders[${i}].name`, `${JSON.stringify(name)} is no name of a header`));
  if (outputPayloadToHeader !== '') problems.push(...collect(ownedHeaderProblem(outputPayloadToHeader, `${path}.outputPayloadToHeader`)));
  for (const [i, { header = '', claim = '' }] of outputClaimToHeaders.entries()) {
    problems.push(...collect(ownedHeaderProblem(header, `${path}.outputClaimToHeaders[${i}].header`)));
    if (claim === '') problems.push(invalid(`${path}.outputClaimToHeaders[${i}].claim`, 'which claim?'));
  }
  return problems;
}

function isUri(text: string): boolean {
  return URL.canParse(text) && /^https?:$/.test(new URL(text).protocol);
}

const uriProblems = (text: string, path: string) => (isUri(text) ? [] : [invalid(path, `${JSON.stringify(text)} is no http or https URL`)]);

function isUsableKey(key: unknown): boolean {
  if (!isPlainObject(key)) return false;
  if (key['kty'] === 'oct') return typeof key['k'] === 'string' && key['k'] !== '';
  try {
    createPublicKey({ key: key as JsonWebKey, format: 'jwk' });
    return true;
  } catch {
    return false;
  }
}

function keySetProblems(text: string, path: string): Problem[] {
  try {
    const set: unknown = JSON.parse(text);
    if (!isPlainObject(set) || !Array.isArray(set['keys']) || set['keys'].length === 0) return [invalid(path, 'is no key set: {"keys":[...]} (RFC 7517)')];
    const secret = set['keys'].findIndex((key) => isPlainObject(key) && ('d' in key || 'p' in key));
    if (secret >= 0) return [invalid(path, `key ${secret} holds a private key, which only the issuer may have: leave out all but its public part`)];
    return set['keys'].some(isUsableKey) ? [] : [invalid(path, 'holds no key that can be read, so every token would be refused (RFC 7517, RFC 7518)')];
  } catch {
    return [invalid(path, 'is no JSON')];
  }
}
