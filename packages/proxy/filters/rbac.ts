import { RBACSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import { Enforcement } from '../authorization/enforcement.ts';
import type { Exchange } from '../http/exchange.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { FilterKind } from './filter.ts';
import { unpackConfig } from './unpack-config.ts';

const name = 'envoy.filters.http.rbac';
const supported = supportedFields(RBACSchema, ['rules', 'shadowRules', 'shadowRulesStatPrefix']);
const grpcPermissionDenied = 7;

/** envoy.filters.http.rbac: lets requests in by who sends them and what they ask for. */
export const rbac: FilterKind = {
  name,
  create(any, place, { counters }) {
    const config = unpackConfig(RBACSchema, any, place);
    refuseUnsupported(RBACSchema, config, supported, place);
    const enforcement = new Enforcement(config, place, counters);
    const { shadowPrefix } = enforcement;
    const decisive = [...matchedHeaders(config)];
    return {
      name,
      onRequest(exchange: Exchange) {
        const { headers } = exchange.head;
        if (headers.hasAliases) for (const header of decisive) headers.removeAliases(header);
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

/** Names of the headers that rules decide on: the service must not read another value in another spelling than the rules have seen. */
function matchedHeaders(message: unknown, found = new Set<string>()): Set<string> {
  if (Array.isArray(message)) for (const one of message) matchedHeaders(one, found);
  else if (typeof message === 'object' && message !== null && !ArrayBuffer.isView(message)) {
    const { $typeName, name } = message as { readonly $typeName?: unknown; readonly name?: unknown };
    if ($typeName === 'envoy.config.route.v3.HeaderMatcher' && typeof name === 'string') found.add(name.toLowerCase());
    for (const value of Object.values(message)) matchedHeaders(value, found);
  }
  return found;
}
