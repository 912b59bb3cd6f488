import { RBACSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import { Enforcement } from '../authorization/enforcement.ts';
import type { Exchange } from '../http/exchange.ts';
import { refuseUnsupported } from '../xds/supported-fields.ts';
import type { FilterKind } from './filter.ts';
import { unpackConfig } from './unpack-config.ts';

const name = 'envoy.filters.http.rbac';
const supported = new Set(['rules', 'shadowRules', 'shadowRulesStatPrefix']);
const grpcPermissionDenied = 7;

/** envoy.filters.http.rbac: lets requests in by who sends them and what they ask for. */
export const rbac: FilterKind = {
  name,
  create(any, place, { counters }) {
    const config = unpackConfig(RBACSchema, any, place);
    refuseUnsupported(RBACSchema, config, supported, place);
    const enforcement = new Enforcement(config, place, counters);
    const { shadowPrefix } = enforcement;
    return {
      name,
      onRequest(exchange: Exchange) {
        const subject = exchange.authorizationSubject();
        const shadow = enforcement.rehearse(subject);
        if (shadow !== undefined)
          exchange.addMetadata(name, {
            [`${shadowPrefix}shadow_engine_result`]: shadow.isAllowed ? 'allowed' : 'denied',
            ...(shadow.policy === undefined ? {} : { [`${shadowPrefix}shadow_effective_policy_id`]: shadow.policy }),
          });
        const { isAllowed, policy } = enforcement.decide(subject);
        if (isAllowed) return 'continue';
        exchange.reply(403, 'RBAC: access denied', '', `rbac_access_denied_matched_policy[${policy ?? 'none'}]`, grpcPermissionDenied);
        return 'stop';
      },
    };
  },
};
