import type { HedgePolicy, RetryPolicy, RouteAction_RequestMirrorPolicy } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import type { HeaderMutations } from './header-operations.ts';

/** What a route has from its virtual host and table, where it says nothing itself. */
export interface Inherited {
  /** The route's own among them, in the order in which they are applied. */
  readonly requestHeaders: readonly HeaderMutations[];
  readonly responseHeaders: readonly HeaderMutations[];
  readonly retry: RetryPolicy | undefined;
  readonly hedge: HedgePolicy | undefined;
  readonly mirrors: readonly RouteAction_RequestMirrorPolicy[];
  readonly maxDirectResponseBytes: number;
}
