import type { AuthorizationRuleSpec } from '@mizzen/api';

/**
 * Values of an AuthorizationPolicy that no request can match, as their writers seldom mean: a DENY with such a value denies nothing. Requests are compared in
 * the form that proxies bring them into (packages/proxy/route/normalize-path.ts), and names in the form that identities have.
 */
export interface NeverMatching {
  readonly path: string;
  readonly message: string;
}

/** Reported for one policy; the rest of a long list would say the same. */
const maxReported = 20;

/** Attributes of `when` whose values are held to the same as a field of `from` or `to`. */
const fieldOfKey: Readonly<Record<string, string>> = {
  'source.principal': 'principals',
  'source.namespace': 'namespaces',
  'request.auth.principal': 'requestPrincipals',
  'request.headers[:method]': 'methods',
  'request.headers[:authority]': 'hosts',
  'request.headers[host]': 'hosts',
};

export function neverMatching(rules: readonly (AuthorizationRuleSpec | null)[]): NeverMatching[] {
  const found: NeverMatching[] = [];
  const check = (at: string, field: string, values: unknown) => {
    if (!Array.isArray(values)) return;
    for (const [i, value] of values.entries()) {
      if (found.length >= maxReported) return;
      const path = `${at}[${i}]`;
      const reason = typeof value === 'string' ? reasonFor(field, value) : undefined;
      if (reason !== undefined) found.push({ path, message: `${path}: ${JSON.stringify(value.slice(0, 80))} ${reason}.` });
    }
  };
  const checkAll = (at: string, fields: object | undefined) => {
    for (const [name, values] of Object.entries(fields ?? {}))
      check(`${at}.${name}`, name.startsWith('not') ? name[3]!.toLowerCase() + name.slice(4) : name, values);
  };
  for (const [i, rule] of rules.entries()) {
    const at = `spec.rules[${i}]`;
    for (const [k, one] of (rule?.from ?? []).entries()) checkAll(`${at}.from[${k}].source`, one?.source);
    for (const [k, one] of (rule?.to ?? []).entries()) checkAll(`${at}.to[${k}].operation`, one?.operation);
    for (const [k, condition] of (rule?.when ?? []).entries()) {
      const { key = '', values, notValues } = condition ?? {};
      const field = fieldOfKey[key.toLowerCase()] ?? (/^request\.headers\[|^source\.|^connection\.sni$/.test(key) ? 'other' : '');
      check(`${at}.when[${k}].values`, field, values);
      check(`${at}.when[${k}].notValues`, field, notValues);
    }
  }
  return found;
}

const standardMethods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'CONNECT', 'OPTIONS', 'TRACE', 'PATCH']);

function reasonFor(field: string, value: string): string | undefined {
  // The wildcard may stand at both ends of an address or port no less than anywhere: those are verified when they are decoded.
  if (field !== 'namespaces' && field !== 'trustDomains' && value.slice(1, -1).includes('*') && !value.includes('{*'))
    return 'matches nothing but itself: the * in the middle is not a wildcard';
  const literal = value.replace(/^\*|\*$/g, '');
  switch (field) {
    case 'paths':
      if (!/^[/*{]/.test(value)) return 'matches no path: a path begins with /';
      if (/[?#]/.test(literal)) return 'matches no path: rules are compared with the path alone, without its query';
      if (/\/\.{1,2}(?:\/|$)|\\|\/\/|%(?:2[de]|3\d|[46][1-9a-f]|[57][0-9a]|5f|7e)/i.test(literal))
        return 'matches no path: rules are compared with the normal form, without dot segments, double slashes, backslashes and needless escapes';
      return undefined;
    case 'methods':
      return value !== value.toUpperCase() && standardMethods.has(value.toUpperCase())
        ? `matches no ${value.toUpperCase()}: methods are compared as they are written`
        : undefined;
    case 'hosts':
      return /[/\s]/.test(value) ? 'matches no host: a host has neither a scheme nor a path' : undefined;
    case 'namespaces':
      return /^[a-z0-9*-]+$/.test(value) ? undefined : 'matches no namespace: a name has lower-case letters, digits and dashes';
    case 'principals':
      if (value.startsWith('spiffe://')) return 'matches no identity: write it without spiffe://';
      return !value.includes('*') && !/^[^/]+\/[^/]/.test(value.replace(/^ns\/.*/, ''))
        ? 'matches no identity: write TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT'
        : undefined;
    case 'requestPrincipals':
      return value.includes('*') || value.includes('/') ? undefined : 'matches no token: write ISSUER/SUBJECT';
    default:
      return undefined;
  }
}
