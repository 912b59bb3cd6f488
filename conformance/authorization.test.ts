import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { create, createRegistry, toJson } from '@bufbuild/protobuf';
import { RBAC_Action, type RBACSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import { RBACSchema as HttpRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import { UriTemplateMatchConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/path/match/uri_template/v3/uri_template_match_pb.js';
import fc from 'fast-check';
import { cluster, http, type Json, TestEngine, typed } from '../e2e/support/engine.ts';
import { policy, request } from '../e2e/support/random-policies.ts';
import type { PlainPolicy } from '../e2e/support/reference-authorization.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { never, policyOfRule } from '../packages/control/pilot/security/authorization-rules.ts';
import { EnvoyPair, type Outcome } from './support/envoy-pair.ts';

const seed = Number(process.env['MIZZEN_SEED'] ?? 20_261);
const sets = Number(process.env['MIZZEN_SETS'] ?? 6);
const requestsPerSet = 400;

/** Filters for the policies of one workload, one for each action. */
function rbacFilters(policies: readonly PlainPolicy[]): Json[] {
  return (['DENY', 'ALLOW'] as const).flatMap((action) => {
    const own = policies.filter(({ spec }) => (spec.action ?? 'ALLOW') === action);
    if (own.length === 0) return [];
    const rules = own.flatMap(({ namespace, spec }, i) =>
      (spec.rules ?? []).flatMap((rule, j) => {
        const made = policyOfRule(rule, { namespace, trustDomains: ['cluster.local'], isBytes: false, port: 80, isForAllowing: action === 'ALLOW' });
        return made === undefined ? [] : [[`${i}/${j}`, made] as const];
      }),
    );
    const message = create(HttpRbacSchema, {
      rules: { action: action === 'DENY' ? RBAC_Action.DENY : RBAC_Action.ALLOW, policies: { never, ...Object.fromEntries(rules) } } as NonNullable<
        Parameters<typeof create<typeof RBACSchema>>[1]
      >,
    });
    return [
      typed(
        'envoy.filters.http.rbac',
        'extensions.filters.http.rbac.v3.RBAC',
        toJson(HttpRbacSchema, message, { registry: createRegistry(UriTemplateMatchConfigSchema) }) as Json,
      ),
    ];
  });
}

/** Random AuthorizationPolicies as the control plane makes them, in a stock Envoy and in ours: the same requests must be let in. */
describe('authorization, beside stock Envoy', { skip: skipWithout('envoy') }, () => {
  let engine: TestEngine;
  let ports: number[];
  let seen: Map<string, Outcome['seen'][number][]>;
  before(async () => {
    engine = new TestEngine();
    ({ ports, seen } = await EnvoyPair.servers(engine, 1));
  });
  after(() => engine.close());

  it(`lets the same of ${sets * requestsPerSet} requests in`, async () => {
    const policySets = fc.sample(fc.array(policy, { minLength: 2, maxLength: 5 }), { seed, numRuns: sets });
    const requests = fc
      .sample(request, { seed, numRuns: requestsPerSet * 2 })
      .filter(({ http: inside }) => inside !== undefined)
      .slice(0, requestsPerSet);
    let [allowed, all] = [0, 0];
    for (const [i, policies] of policySets.entries()) {
      const filters = [...rbacFilters(policies), typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router')];
      const pair = await EnvoyPair.start(engine, http('c0', { http_filters: filters, normalize_path: true }), [cluster('c0', ports)], seen);
      await Promise.all(
        requests.map(async ({ http: inside, remoteIp }, j) => {
          const { method, path, host, headers } = inside!;
          const { ours, theirs } = await pair.both({ method, path, headers: { ...headers, host, 'x-forwarded-for': remoteIp } });
          all++;
          if (theirs.status === 200) allowed++;
          assert.deepEqual(
            [ours.status, ours.status === 200 ? '' : ours.body],
            [theirs.status, theirs.status === 200 ? '' : theirs.body],
            `set ${i}, request ${j}: ${JSON.stringify(inside)} from ${remoteIp} under ${JSON.stringify(policies)}`,
          );
        }),
      );
    }
    assert.ok(allowed > all / 20 && allowed < all * 0.95, `of ${all} requests ${allowed} were let in: no test of both`);
  });
});
