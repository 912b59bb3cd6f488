import assert from 'node:assert/strict';
import { it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { packAny } from '@mizzen/envoy-api';
import { Limit_By, RateLimitPerRouteSchema, RateLimitSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange } from '../../http/exchange.ts';
import { ProxyCounters } from '../../telemetry/proxy-counters.ts';
import { rateLimit } from './rate-limit.ts';

it('a limit by address counts the addresses of one IPv6 network as one client, and an IPv4 address in each spelling', () => {
  const context = { counters: new ProxyCounters(), logger: silentLogger, filterStates: new Map() } as unknown as ProxyContext;
  const filter = rateLimit.create(packAny(RateLimitSchema, {}), 'listener', context, rateLimit.name);
  const route = rateLimit.compileRoute!(packAny(RateLimitPerRouteSchema, { limits: [{ name: 'l', by: Limit_By.IP, requests: 1, perMs: 3_600_000 }] }), 'route');
  const ask = (remoteAddress: string) =>
    filter.onRequest!({
      ...{ remoteAddress, filterConfig: () => route, setNote: () => {}, addFlag: () => {}, replyProblem: () => {} },
    } as unknown as Exchange);
  assert.equal(ask('2001:db8:0:1::1'), 'continue');
  for (const same of ['2001:db8:0:1::2', '2001:db8::1:ffff:ffff:ffff:ffff', '2001:db8:0:1:0:0:0:1', '2001:db8:0:1::%eth0'])
    assert.equal(ask(same), 'stop', same);
  assert.equal(ask('2001:db8:0:2::1'), 'continue');
  assert.equal(ask('192.0.2.1'), 'continue');
  assert.equal(ask('::ffff:192.0.2.1'), 'stop');
  assert.equal(ask('::ffff:192.0.2.2'), 'continue');
});
