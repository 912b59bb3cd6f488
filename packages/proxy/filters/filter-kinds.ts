import type { Any } from '@bufbuild/protobuf/wkt';
import { unpackAny } from '@mizzen/envoy-api';
import { ConfigSchema as BridgeSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/grpc_http1_bridge/v3/config_pb.js';
import { refuseUnsupported } from '../xds/supported-fields.ts';
import { authentication } from './authentication/authentication.ts';
import { cache } from './cache/cache.ts';
import { corsFilter } from './cors.ts';
import { credentialInjector } from './credential-injector.ts';
import { extAuthz } from './ext-authz/ext-authz.ts';
import { faultFilter } from './fault.ts';
import type { FilterKind } from './filter.ts';
import { grpcHttp1BridgeFilter } from './grpc-http1-bridge.ts';
import { grpcWebFilter } from './grpc-web.ts';
import { ipAccess } from './ip-access.ts';
import { jwtAuthn } from './jwt-authn/jwt-authn.ts';
import { localService } from './local-service.ts';
import { login } from './login/login.ts';
import { globalRateLimit } from './rate-limit/global-rate-limit.ts';
import { localRateLimit } from './rate-limit/local-rate-limit.ts';
import { rateLimit } from './rate-limit/rate-limit.ts';
import { rbac } from './rbac.ts';
import { script } from './script/script.ts';
import { transcoder } from './transcoder/transcoder.ts';
import { validation } from './validation/validation.ts';

const bridge: FilterKind = {
  name: 'envoy.filters.http.grpc_http1_bridge',
  create(any, place) {
    const config = unpackAny(BridgeSchema, any);
    if (config) refuseUnsupported(BridgeSchema, config, new Set(['upgradeProtobufToGrpc', 'ignoreQueryParameters']), place);
    return grpcHttp1BridgeFilter({ wrapsProtobuf: config?.upgradeProtobufToGrpc ?? false, dropsQuery: config?.ignoreQueryParameters ?? false });
  },
};

/** Every HTTP filter that there is, by its own name. A new one is a line here. */
export const filterKinds: ReadonlyMap<string, FilterKind> = new Map(
  [
    { name: 'envoy.filters.http.cors', create: () => corsFilter } satisfies FilterKind,
    { name: 'envoy.filters.http.grpc_web', create: () => grpcWebFilter } satisfies FilterKind,
    { name: 'envoy.filters.http.fault', create: (_config, _place, { random }) => faultFilter(random) } satisfies FilterKind,
    bridge,
    extAuthz,
    jwtAuthn,
    rbac,
    ipAccess,
    login,
    authentication,
    rateLimit,
    localRateLimit,
    globalRateLimit,
    validation,
    script,
    cache,
    transcoder,
    credentialInjector,
    localService,
  ].map((kind) => [kind.name, kind]),
);

const byTypeName: ReadonlyMap<string, FilterKind> = new Map(
  [...filterKinds.values()].flatMap((kind) => (kind.typeNames ?? []).map((typeName) => [typeName, kind] as const)),
);

/** The kind that a configuration means, by the name that it uses or by the type of what it says. */
export function filterKindOf(name: string, config: Any | undefined): FilterKind | undefined {
  return filterKinds.get(name) ?? (config && byTypeName.get(config.typeUrl.slice(config.typeUrl.lastIndexOf('/') + 1)));
}
