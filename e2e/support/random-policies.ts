import type { AuthorizationPolicySpec } from '@mizzen/api';
import fc from 'fast-check';
import type { PlainPolicy, PlainRequest } from './reference-authorization.ts';

/** Policies and requests whose values are drawn from few, so that they meet. */
const some = <T>(...values: readonly T[]) => fc.array(fc.constantFrom(...values), { minLength: 1, maxLength: 3 });
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined, freq: 2 });
const principals = some(
  'mesh.example/ns/a/sa/x',
  'cluster.local/ns/a/sa/x',
  'old.example/ns/b/sa/y',
  'elsewhere.example/ns/a/sa/x',
  '*',
  '*/sa/x',
  'mesh.example/ns/a/*',
  'mesh.example/*',
);
const namespaces = some('a', 'b', '*', 'a*', '*b');
const accounts = some('x', 'y', 'a/x', 'b/y');
const domains = some('mesh.example', 'cluster.local', 'elsewhere.example', '*', '*.example', 'old*');
const ranges = some('10.0.0.0/8', '10.1.2.3', '192.168.0.0/16', '0.0.0.0/0');
const requestPrincipals = some('*', 'https://issuer/one', 'https://issuer/*', '*/one', 'other/two');
const hosts = some('shop.example', 'SHOP.example', '*.example', 'shop*', '*');
const methods = some('GET', 'POST', '*', 'G*');
const paths = some('/a', '/a/*', '*/c', '*', '/a/{*}', '/a/{**}', '/{*}/c', '/b*');
const ports = some('80', '443');

const record = <T>(model: { readonly [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record(model).map((given) => Object.fromEntries(Object.entries(given as object).filter(([, value]) => value !== undefined)) as Partial<T>);
const source = record({
  ...{
    principals: maybe(principals),
    notPrincipals: maybe(principals),
    requestPrincipals: maybe(requestPrincipals),
    notRequestPrincipals: maybe(requestPrincipals),
  },
  ...{ namespaces: maybe(namespaces), notNamespaces: maybe(namespaces), serviceAccounts: maybe(accounts), notServiceAccounts: maybe(accounts) },
  ...{
    trustDomains: maybe(domains),
    notTrustDomains: maybe(domains),
    ipBlocks: maybe(ranges),
    notIpBlocks: maybe(ranges),
    remoteIpBlocks: maybe(ranges),
    notRemoteIpBlocks: maybe(ranges),
  },
});
const operation = record({
  ...{ hosts: maybe(hosts), notHosts: maybe(hosts), ports: maybe(ports), notPorts: maybe(ports) },
  ...{ methods: maybe(methods), notMethods: maybe(methods), paths: maybe(paths), notPaths: maybe(paths) },
});
const condition = fc
  .oneof(
    fc.tuple(fc.constant('request.headers[x-v]'), some('1', '2*', '*')),
    fc.tuple(fc.constantFrom('source.ip', 'remote.ip'), ranges),
    fc.tuple(fc.constant('source.principal'), principals),
    fc.tuple(fc.constant('source.namespace'), namespaces),
    fc.tuple(fc.constant('source.serviceAccount'), accounts),
    fc.tuple(fc.constant('source.trustDomain'), domains),
    fc.tuple(fc.constant('destination.port'), ports),
    fc.tuple(fc.constant('connection.sni'), some('a.example', '*.example')),
    fc.tuple(fc.constant('request.auth.principal'), requestPrincipals),
    fc.tuple(
      fc.constantFrom('request.auth.audiences', 'request.auth.presenter', 'request.auth.claims[groups]', 'request.auth.claims[a][b]'),
      some('red', 're*', '*', 'blue'),
    ),
  )
  .chain(([key, values]) => fc.constantFrom({ key, values }, { key, notValues: values }));
/** Few fields at a time: with many of them hardly a request meets any rule. */
const sparse = <T extends object>(arbitrary: fc.Arbitrary<T>) =>
  fc.tuple(arbitrary, fc.nat()).map(([whole, pick]) => {
    const keys = Object.keys(whole);
    const kept = keys.length === 0 ? [] : [keys[pick % keys.length]!, keys[(pick >> 3) % keys.length]!];
    return Object.fromEntries(Object.entries(whole).filter(([key]) => kept.includes(key)));
  });
const rule = record({
  from: maybe(
    fc.array(
      sparse(source).map((one) => ({ source: one })),
      { minLength: 1, maxLength: 2 },
    ),
  ),
  to: maybe(
    fc.array(
      sparse(operation).map((one) => ({ operation: one })),
      { minLength: 1, maxLength: 2 },
    ),
  ),
  when: maybe(fc.array(condition, { minLength: 1, maxLength: 2 })),
});
export const policy: fc.Arbitrary<PlainPolicy> = fc.record({
  namespace: fc.constantFrom('a', 'b'),
  spec: fc.record({ action: fc.constantFrom('ALLOW', 'DENY'), rules: fc.array(rule, { maxLength: 3 }) }) as fc.Arbitrary<AuthorizationPolicySpec>,
});
const claims = fc.constantFrom<Record<string, unknown> | undefined>(
  undefined,
  { iss: 'https://issuer', sub: 'one', aud: 'red', groups: ['blue', 'green'] },
  { iss: 'other', sub: 'two', aud: ['blue'], azp: 'red', a: { b: ['red'] } },
);
export const request: fc.Arbitrary<PlainRequest> = fc
  .record({
    principal: fc.constantFrom(
      undefined,
      'spiffe://mesh.example/ns/a/sa/x',
      'spiffe://old.example/ns/b/sa/y',
      'spiffe://elsewhere.example/ns/a/sa/x',
      'spiffe://mesh.example/ns/ab/sa/xy',
    ),
    sourceIp: fc.constantFrom('10.1.2.3', '192.168.1.1', '172.16.0.1'),
    remoteIp: fc.constantFrom('10.1.2.3', '192.168.1.1'),
    port: fc.constantFrom(80, 443),
    serverName: fc.constantFrom('', 'a.example'),
    http: fc.oneof(
      {
        weight: 4,
        arbitrary: fc.record({
          method: fc.constantFrom('GET', 'POST'),
          path: fc.constantFrom('/', '/a', '/a/', '/a/c', '/a/b/c', '/b', '/bb', '/ab'),
          host: fc.constantFrom('shop.example', 'Shop.Example', 'shop.example:80', 'other'),
          headers: fc.constantFrom({}, { 'x-v': '1' }, { 'x-v': '22' }) as fc.Arbitrary<Record<string, string>>,
        }),
      },
      { weight: 1, arbitrary: fc.constant(undefined) },
    ),
    claims,
  })
  // Of a connection nobody says that it came from elsewhere.
  .map((one) => (one.http === undefined ? { ...one, remoteIp: one.sourceIp } : one));
