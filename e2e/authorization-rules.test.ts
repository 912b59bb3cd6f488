import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import type { AuthorizationPolicySpec } from '@mizzen/api';
import { RBAC_Action, RBACSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import fc from 'fast-check';
import { never, policyOfRule } from '../packages/control/pilot/security/authorization-rules.ts';
import { RuleSet } from '../packages/proxy/authorization/rule-set.ts';
import { connectionSubject, requestSubject, type Subject } from '../packages/proxy/authorization/subject.ts';
import { RequestHead } from '../packages/proxy/message/request-head.ts';
import { isAllowed, type PlainPolicy, type PlainRequest } from './support/reference-authorization.ts';

const trustDomains = ['mesh.example', 'old.example'];

/** As the control plane makes it and a proxy evaluates it. */
class Compiled {
  readonly #sets: readonly RuleSet[];

  constructor(policies: readonly PlainPolicy[], isBytes: boolean) {
    this.#sets = (['DENY', 'ALLOW'] as const).flatMap((action) => {
      const own = policies.filter(({ spec }) => (spec.action ?? 'ALLOW') === action);
      if (own.length === 0) return [];
      const rules = own.flatMap(({ namespace, spec }, i) =>
        (spec.rules ?? []).flatMap((rule, j) => {
          const policy = policyOfRule(rule, { namespace, trustDomains, isBytes, port: undefined, isForAllowing: action === 'ALLOW' });
          return policy === undefined ? [] : [[`${i}/${j}`, policy] as const];
        }),
      );
      return [
        new RuleSet(
          create(RBACSchema, { action: action === 'DENY' ? RBAC_Action.DENY : RBAC_Action.ALLOW, policies: { never, ...Object.fromEntries(rules) } }),
          'test',
        ),
      ];
    });
  }

  allows(subject: Subject): boolean {
    return this.#sets.every((set) => (set.action === 'ALLOW') === (set.match(subject) !== undefined));
  }
}

function subjectOf({ principal, sourceIp, remoteIp, port, serverName, http, claims }: PlainRequest): Subject {
  const info = {
    ...{ remoteAddress: sourceIp, remotePort: 1, localAddress: '10.0.0.1', localPort: port },
    ...{ isOriginalDestination: false, isTls: true, serverName, applicationProtocols: [] },
  };
  const peer = principal === undefined ? undefined : { uri: principal, subject: '', hash: '' };
  if (http === undefined) return connectionSubject(info, peer);
  const head = new RequestHead();
  Object.assign(head, { method: http.method, target: `${http.path}?q=1`, authority: http.host });
  for (const [name, value] of Object.entries(http.headers)) head.headers.add(name, value);
  head.headers.add('x-forwarded-for', remoteIp);
  return requestSubject(head, info, peer, (filter) => (filter === 'envoy.filters.http.jwt_authn' && claims ? { payload: claims } : undefined));
}

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
const policy: fc.Arbitrary<PlainPolicy> = fc.record({
  namespace: fc.constantFrom('a', 'b'),
  spec: fc.record({ action: fc.constantFrom('ALLOW', 'DENY'), rules: fc.array(rule, { maxLength: 3 }) }) as fc.Arbitrary<AuthorizationPolicySpec>,
});
const claims = fc.constantFrom<Record<string, unknown> | undefined>(
  undefined,
  { iss: 'https://issuer', sub: 'one', aud: 'red', groups: ['blue', 'green'] },
  { iss: 'other', sub: 'two', aud: ['blue'], azp: 'red', a: { b: ['red'] } },
);
const request: fc.Arbitrary<PlainRequest> = fc
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

describe('rules of authorization', () => {
  it('decide, compiled, as a plain reading of them does', () => {
    let allowed = 0;
    let all = 0;
    fc.assert(
      fc.property(fc.array(policy, { minLength: 1, maxLength: 4 }), fc.array(request, { minLength: 30, maxLength: 30 }), (policies, requests) => {
        const forms = [new Compiled(policies, false), new Compiled(policies, true)];
        for (const one of requests) {
          const expected = isAllowed(policies, one, trustDomains);
          all++;
          if (expected) allowed++;
          assert.equal(forms[one.http === undefined ? 1 : 0]!.allows(subjectOf(one)), expected, JSON.stringify(one));
        }
      }),
      { numRuns: Number(process.env['MIZZEN_RUNS'] ?? 400) },
    );
    assert.ok(allowed > all / 20 && allowed < all * 0.95, `of ${all} requests ${allowed} are allowed: no test of both`);
  });

  it('cost less than 5 us for a thousand of them', () => {
    const callers = Array.from({ length: 100 }, (_, i) => `mesh.example/ns/a/sa/caller-${i}`);
    const thousand = Array.from({ length: 1_000 }, (_, i) => ({
      from: [
        {
          source: i % 3 === 0 ? { principals: [callers[i % 100]!] } : i % 3 === 1 ? { namespaces: [`team-${i}`, 'a'] } : { notPrincipals: [callers[i % 100]!] },
        },
      ],
      to: [{ operation: { methods: ['GET'], paths: i % 2 ? [`/api/v${i}/*`] : [`/exact/${i}`, `/other/${i}`] } }],
    }));
    const compiled = new Compiled(
      [
        { namespace: 'a', spec: { rules: thousand } },
        {
          namespace: 'a',
          spec: {
            action: 'DENY',
            rules: thousand.map((one) => ({ ...one, to: [{ operation: { paths: one.to[0]!.operation.paths.map((path) => `/denied${path}`) } }] })),
          },
        },
      ],
      false,
    );
    const subjects = callers.map((caller, i) =>
      subjectOf({
        ...{ principal: `spiffe://${caller}`, sourceIp: '10.0.0.1', remoteIp: '10.0.0.1', port: 80, serverName: '', claims: undefined },
        http: { method: 'GET', path: `/exact/${i * 2}`, host: 'shop', headers: { a: 'b' } },
      }),
    );
    let count = 0;
    const turn = () => {
      for (const subject of subjects) if (compiled.allows(subject)) count++;
    };
    for (let i = 0; i < 100; i++) turn();
    const before = process.cpuUsage();
    for (let i = 0; i < 1_000; i++) turn();
    const { user, system } = process.cpuUsage(before);
    const us = (user + system) / 100_000;
    if (process.env['MIZZEN_SHOW_COST']) console.log(`# ${us.toFixed(2)} us a request under 2,000 rules`);
    assert.ok(count > 0);
    // Twice the aim: tests share their machine.
    assert.ok(us < 10, `${us} us`);
  });
});
