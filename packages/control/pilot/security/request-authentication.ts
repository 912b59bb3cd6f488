import type { JwtRuleSpec, RequestAuthenticationSpec } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import { type Init, packAny } from '@mizzen/envoy-api';
import {
  JwtAuthenticationSchema,
  type JwtProviderSchema,
  type JwtRequirementSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/jwt_authn/v3/config_pb.js';
import type { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { type KeySource, nobodysKeys } from '../../citadel/jwks-resolver.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { isForWorkload } from './policy-selection.ts';
import { jwtFilter, jwtPayload } from './value-matchers.ts';

const defaultTimeoutMs = 5_000;
/** Claims that are lists written with spaces (RFC 8693 section 4.2), beside those that a rule names. */
const listClaims = ['scope', 'permission'];

type Requirement = Init<typeof JwtRequirementSchema>;

/** undefined: the rule has its keys with it. */
export function keySourceOf({ issuer = '', jwks, jwksUri, timeout }: JwtRuleSpec): KeySource | undefined {
  if (jwks) return undefined;
  return { issuer, jwksUri: jwksUri || undefined, timeoutMs: (timeout && parseDurationMs(timeout)) || defaultTimeoutMs };
}

export function requestAuthenticationsFor(
  view: Pick<ProxyView, 'namespace' | 'labels' | 'type'>,
  snapshot: MeshSnapshot,
): Configured<RequestAuthenticationSpec>[] {
  return snapshot.requestAuthentications.filter((policy) => isForWorkload(policy, view));
}

/** Tokens of end users: one that is shown must be good, none is none (istio/api request_authentication.proto). */
export function jwtFilters(view: ProxyView, snapshot: MeshSnapshot): Init<typeof HttpFilterSchema>[] {
  const rules = requestAuthenticationsFor(view, snapshot).flatMap(({ spec }) => spec.jwtRules ?? []);
  if (rules.length === 0) return [];
  const named = rules.map((rule, i) => [`origins-${i}`, providerOf(rule, view, snapshot)] as const);
  return [
    {
      name: jwtFilter,
      configType: {
        case: 'typedConfig',
        value: packAny(JwtAuthenticationSchema, {
          providers: Object.fromEntries(named),
          rules: [
            {
              match: { pathSpecifier: { case: 'prefix', value: '/' } },
              requirementType: { case: 'requires', value: requirementOf(named.map(([name]) => name)) },
            },
          ],
          bypassCorsPreflight: true,
        }),
      },
    },
  ];
}

/** Any of them is enough; where none is shown, none is needed; but what is shown for one of them must be good. */
function requirementOf(names: readonly string[]): Requirement {
  const only = (name: string): Requirement => ({ requiresType: { case: 'providerName', value: name } });
  const orNone = (name: string): Requirement => anyOf([only(name), { requiresType: { case: 'allowMissing', value: {} } }]);
  if (names.length === 1) return orNone(names[0]!);
  return anyOf([...names.map(only), { requiresType: { case: 'requiresAll', value: { requirements: names.map(orNone) } } }]);
}

const anyOf = (requirements: readonly Requirement[]): Requirement => ({ requiresType: { case: 'requiresAny', value: { requirements: [...requirements] } } });

function providerOf(rule: JwtRuleSpec, view: ProxyView, snapshot: MeshSnapshot): Init<typeof JwtProviderSchema> {
  const source = keySourceOf(rule);
  const keys = source === undefined ? rule.jwks! : (snapshot.keySets.keysOf(source) ?? nobodysKeys());
  return {
    issuer: rule.issuer ?? '',
    audiences: [...(rule.audiences ?? [])],
    jwksSourceSpecifier: { case: 'localJwks', value: { specifier: { case: 'inlineString', value: keys } } },
    forward: rule.forwardOriginalToken ?? false,
    fromHeaders: (rule.fromHeaders ?? []).map(({ name = '', prefix = '' }) => ({ name, valuePrefix: prefix })),
    fromParams: [...(rule.fromParams ?? [])],
    fromCookies: [...(rule.fromCookies ?? [])],
    forwardPayloadHeader: rule.outputPayloadToHeader ?? '',
    payloadInMetadata: jwtPayload,
    normalizePayloadInMetadata: { spaceDelimitedClaims: [...new Set([...listClaims, ...(rule.spaceDelimitedClaims ?? [])])] },
    claimToHeaders: (rule.outputClaimToHeaders ?? []).map(({ header = '', claim = '' }) => ({ headerName: header, claimName: claim })),
    // At gateways routes may be for claims.
    clearRouteCache: view.type === 'gateway',
  };
}
