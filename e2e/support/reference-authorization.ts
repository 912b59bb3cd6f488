import type { AuthorizationPolicySpec, AuthorizationRuleSpec } from '@mizzen/api';

/** A request, told plainly. */
export interface PlainRequest {
  readonly principal: string | undefined;
  readonly sourceIp: string;
  readonly remoteIp: string;
  readonly port: number;
  readonly serverName: string;
  /** undefined: a connection. */
  readonly http: { readonly method: string; readonly path: string; readonly host: string; readonly headers: Readonly<Record<string, string>> } | undefined;
  readonly claims: Readonly<Record<string, unknown>> | undefined;
}

export interface PlainPolicy {
  readonly namespace: string;
  readonly spec: AuthorizationPolicySpec;
}

/** What Istio's documents say that policies mean, read field by field with nothing compiled: the measure of what is compiled. */
export function isAllowed(policies: readonly PlainPolicy[], request: PlainRequest, trustDomains: readonly string[]): boolean {
  const meets = (action: string) =>
    policies.some(
      ({ namespace, spec }) =>
        (spec.action ?? 'ALLOW') === action && (spec.rules ?? []).some((rule) => meetsRule(rule, request, namespace, action === 'ALLOW', trustDomains)),
    );
  if (meets('DENY')) return false;
  return !policies.some(({ spec }) => (spec.action ?? 'ALLOW') === 'ALLOW') || meets('ALLOW');
}

type Field = { readonly values: readonly string[]; readonly notValues: readonly string[]; readonly fits: ((value: string) => boolean) | 'unknowable' };

function meetsRule(rule: AuthorizationRuleSpec, request: PlainRequest, namespace: string, isForAllowing: boolean, trustDomains: readonly string[]): boolean {
  const when = (rule.when ?? []).map(
    ({ key = '', values = [], notValues = [] }): Field => ({ values, notValues, fits: attribute(key, request, namespace, trustDomains) }),
  );
  const of = (key: string, values: readonly string[] = [], notValues: readonly string[] = []): Field => ({
    values,
    notValues,
    fits: attribute(key, request, namespace, trustDomains),
  });
  const froms = (rule.from ?? [{ source: undefined }]).map(({ source: s = {} }) => [
    of('source.principal', s.principals, s.notPrincipals),
    of('request.auth.principal', s.requestPrincipals, s.notRequestPrincipals),
    of('source.namespace', s.namespaces, s.notNamespaces),
    of('source.serviceAccount', s.serviceAccounts, s.notServiceAccounts),
    of('source.trustDomain', s.trustDomains, s.notTrustDomains),
    of('source.ip', s.ipBlocks, s.notIpBlocks),
    of('remote.ip', s.remoteIpBlocks, s.notRemoteIpBlocks),
  ]);
  const tos = (rule.to ?? [{ operation: undefined }]).map(({ operation: o = {} }) => [
    of('host', o.hosts, o.notHosts),
    of('method', o.methods, o.notMethods),
    of('path', o.paths, o.notPaths),
    of('destination.port', o.ports, o.notPorts),
  ]);
  const all = [...froms.flat(), ...tos.flat(), ...when];
  // Who may not be let in by what nobody knows of a connection is not.
  if (isForAllowing && all.some(({ fits, values, notValues }) => fits === 'unknowable' && values.length + notValues.length > 0)) return false;
  const meets = ({ values, notValues, fits }: Field) => fits === 'unknowable' || ((values.length === 0 || values.some(fits)) && !notValues.some(fits));
  return froms.some((fields) => fields.every(meets)) && tos.some((fields) => fields.every(meets)) && when.every(meets);
}

function attribute(key: string, request: PlainRequest, namespace: string, trustDomains: readonly string[]): Field['fits'] {
  const { http, claims, principal } = request;
  const identity = /^spiffe:\/\/([^/]+)\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(principal ?? '');
  // A trust domain of the mesh goes by all of its names, and by `cluster.local`.
  const namesOf = (domain: string) => (trustDomains.includes(domain) ? [...trustDomains, 'cluster.local'] : [domain]);
  switch (key) {
    case 'source.principal':
      return (value) => {
        if (principal === undefined) return false;
        const given = principal.slice('spiffe://'.length);
        return namesOf(given.split('/', 1)[0]!).some((name) => wild(value, `${name}${given.slice(given.indexOf('/'))}`));
      };
    case 'source.namespace':
      return (value) => identity !== null && glob(value).test(identity[2]!);
    case 'source.serviceAccount':
      return (value) => identity !== null && `${identity[2]}/${identity[3]}` === (value.includes('/') ? value : `${namespace}/${value}`);
    case 'source.trustDomain':
      return (value) => identity !== null && namesOf(identity[1]!).some((name) => wild(value, name));
    case 'source.ip':
      return (value) => inRange(value, request.sourceIp);
    case 'remote.ip':
      return (value) => inRange(value, request.remoteIp);
    case 'destination.port':
      return (value) => request.port === Number(value);
    case 'connection.sni':
      return (value) => wild(value, request.serverName);
  }
  if (http === undefined) return 'unknowable';
  const header = /^request\.headers\[(.+)\]$/.exec(key)?.[1];
  if (header !== undefined) {
    const given = http.headers[header];
    return (value) => given !== undefined && (value === '*' || wild(value, given));
  }
  const text = (path: readonly string[]) =>
    path.reduce<unknown>((at, name) => (typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[name] : undefined), claims);
  const among = (path: readonly string[]) => {
    const given = text(path);
    return (value: string) => (Array.isArray(given) ? given : [given]).some((one) => typeof one === 'string' && wild(value, one));
  };
  switch (key) {
    case 'host':
      return (value) => value === '*' || wild(value.toLowerCase(), http.host.toLowerCase());
    case 'method':
      return (value) => value === '*' || wild(value, http.method);
    case 'path':
      return (value) => (value.includes('{*}') || value.includes('{**}') ? template(value, http.path) : wild(value, http.path));
    case 'request.auth.principal':
      return (value) => {
        const [issuer, subject] = [text(['iss']), text(['sub'])];
        if (typeof issuer !== 'string' || typeof subject !== 'string') return false;
        if (value === '*') return issuer !== '' && subject !== '';
        const slash = value.lastIndexOf('/');
        return wild(value.slice(0, slash), issuer) && wild(value.slice(slash + 1), subject);
      };
    case 'request.auth.audiences':
      return among(['aud']);
    case 'request.auth.presenter':
      return among(['azp']);
  }
  return among([...key.matchAll(/\[([^[\]]+)\]/g)].map(([, name]) => name!));
}

function wild(pattern: string, text: string): boolean {
  if (pattern === '*') return text !== '';
  if (pattern.startsWith('*')) return text.endsWith(pattern.slice(1));
  return pattern.endsWith('*') ? text.startsWith(pattern.slice(0, -1)) : text === pattern;
}

const glob = (pattern: string) =>
  new RegExp(
    `^${pattern
      .split('*')
      .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
      .join('.*')}$`,
  );

/** Segment by segment. */
function template(pattern: string, path: string): boolean {
  const wanted = pattern.split('/');
  const given = path.split('/');
  for (const [i, part] of wanted.entries()) {
    if (part === '{**}') return given.length > i;
    if (given[i] === undefined || (part === '{*}' ? given[i] === '' : part !== given[i])) return false;
  }
  return given.length === wanted.length;
}

function inRange(range: string, address: string): boolean {
  const bits = (text: string) => text.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
  const [base = '', length = '32'] = range.split('/');
  const size = 2 ** (32 - Number(length));
  return Math.floor(bits(base) / size) === Math.floor(bits(address) / size);
}
