import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { readRequestHead } from '../http1/read-request-head.ts';
import { defaultHeadLimits } from '../message/head-limits.ts';
import type { RequestHead } from '../message/request-head.ts';
import { compileRouteTable } from './compile-routes.ts';
import { normalizeTarget } from './normalize-path.ts';
import { queryParameter } from './query.ts';

const head = (target: string, fields = '') => readRequestHead(`GET ${target} HTTP/1.1\r\nhost: h\r\n${fields}`, defaultHeadLimits) as RequestHead;
const table = (config: MessageInitShape<typeof RouteConfigurationSchema>) => compileRouteTable(create(RouteConfigurationSchema, config));
const to = (cluster: string) => ({ action: { case: 'route' as const, value: { clusterSpecifier: { case: 'cluster' as const, value: cluster } } } });

describe('routes', () => {
  it('finds the virtual host: exact before suffix before prefix before any, the longest first, in any case', () => {
    const hosts = ['a.example.com', '*.example.com', '*.b.example.com', 'api.*', '*'].map((domain) => ({ name: domain, domains: [domain] }));
    const found = (authority: string) => table({ name: 't', virtualHosts: hosts }).findHost(authority)?.name;
    assert.deepEqual(['a.example.com', 'A.EXAMPLE.com.', 'x.example.com', 'x.b.example.com', 'api.test', 'other', '.example.com'].map(found), [
      'a.example.com',
      'a.example.com',
      '*.example.com',
      '*.b.example.com',
      'api.*',
      '*',
      '*',
    ]);
  });

  it('matches headers by presence, text, inversion and range', () => {
    const routes = table({
      virtualHosts: [
        {
          domains: ['*'],
          routes: [
            {
              name: 'range',
              match: {
                pathSpecifier: { case: 'prefix', value: '/' },
                headers: [{ name: 'n', headerMatchSpecifier: { case: 'rangeMatch', value: { start: 5n, end: 10n } } }],
              },
              ...to('c'),
            },
            {
              name: 'without',
              match: {
                pathSpecifier: { case: 'prefix', value: '/' },
                headers: [{ name: 'x', headerMatchSpecifier: { case: 'presentMatch', value: true }, invertMatch: true }],
              },
              ...to('c'),
            },
            { name: 'rest', match: { pathSpecifier: { case: 'prefix', value: '/' } }, ...to('c') },
          ],
        },
      ],
    });
    const found = (fields: string) => routes.findHost('h')!.find(head('/', fields))?.name;
    assert.deepEqual([found('n: 7\r\n'), found('n: 10\r\nx: 1\r\n'), found(''), found('x: 1\r\n')], ['range', 'rest', 'without', 'rest']);
  });

  it('refuses what it cannot honour instead of leaving it out', () => {
    const route = (value: object) => () => table({ virtualHosts: [{ domains: ['*'], routes: [value as never] }] });
    assert.throws(route({ match: { pathSpecifier: { case: 'pathMatchPolicy', value: {} } }, ...to('c') }), /not supported/);
    assert.throws(route({ match: { pathSpecifier: { case: 'safeRegex', value: { regex: '(' } } }, ...to('c') }), /not a valid RE2/);
    assert.throws(
      route({
        match: { pathSpecifier: { case: 'prefix', value: '/' } },
        action: { case: 'route', value: { clusterSpecifier: { case: 'clusterSpecifierPlugin', value: 'x' } } },
      }),
      /cluster_specifier_plugin/,
    );
    assert.throws(
      route({
        match: { pathSpecifier: { case: 'prefix', value: '/' } },
        action: { case: 'route', value: { clusterSpecifier: { case: 'weightedClusters', value: { clusters: [{ name: 'a', weight: 0 }] } } } },
      }),
      /add up to nothing/,
    );
  });

  it('takes no exponential time for any regex', () => {
    const routes = table({
      virtualHosts: [{ domains: ['*'], routes: [{ match: { pathSpecifier: { case: 'safeRegex', value: { regex: '(/a+)+b' } } }, ...to('c') }] }],
    });
    const startedAt = performance.now();
    assert.equal(routes.findHost('h')!.find(head(`/${'a'.repeat(5_000)}`)), undefined);
    assert.ok(performance.now() - startedAt < 10_000);
  });

  it('brings paths to one form and refuses those that leave the root', () => {
    const cases: readonly (readonly [string, string | undefined])[] = [
      ['/a/b?x=/../y', '/a/b?x=/../y'],
      ['/a/./b', '/a/b'],
      ['/a/../b', '/b'],
      ['/a/%2e%2E/b', '/b'],
      ['/%61', '/a'],
      ['/a%2fb', '/a%2fb'],
      ['/a\\b', '/a/b'],
      ['/a/..', '/'],
      ['/..', undefined],
      ['/a/../../b', undefined],
      ['/%00', undefined],
      ['/a//b', '/a//b'],
      ['/.well-known/x', '/.well-known/x'],
    ];
    for (const [target, normal] of cases) assert.equal(normalizeTarget(target), normal, target);
    for (const dots of ['..', '.', '%2e%2e', '.%2E', '%2e'])
      for (const parameters of [';', ';a=b', ';/', '%3b', '%3Ba'])
        for (const target of [`/x/${dots}${parameters}/admin`, `/${dots}${parameters}`, `/x\\${dots}${parameters}/admin?q`])
          assert.equal(normalizeTarget(target), undefined, target);
  });

  it('reads query parameters as they are written', () => {
    assert.equal(queryParameter('/?a=1&b=x%20y+z&a=2', 'a'), '1');
    assert.equal(queryParameter('/?a=1&b=x%20y+z', 'b'), 'x%20y+z');
    assert.equal(queryParameter('/?%61=1', 'a'), undefined);
    assert.equal(queryParameter('/?flag&x', 'flag'), '');
    assert.equal(queryParameter('/?ab=1', 'a'), undefined);
    assert.equal(queryParameter('/', 'a'), undefined);
  });
});
