import { type DescMessage, fromBinary, isFieldSet, type Message, type Registry } from '@bufbuild/protobuf';
import { type ReflectMessage, reflect } from '@bufbuild/protobuf/reflect';
import { type Any, AnySchema } from '@bufbuild/protobuf/wkt';
import { messageOf } from '@mizzen/common';
import { type RateLimit as RouteRateLimit, RateLimitSchema as RouteRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type LocalRateLimit, LocalRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit_pb.js';
import {
  type RateLimit,
  type RateLimitPerRoute,
  RateLimitPerRouteSchema,
  RateLimitSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ratelimit/v3/rate_limit_pb.js';
import { checkLocalRateLimit, checkRateLimit, checkRateLimitPerRoute, checkRouteRateLimits } from '@mizzen/gateway/rate-limits';

/** How a patch limits requests: what of it would not hold, and what is legal but limits nothing. */
export interface RateLimitReview {
  readonly problem: string | undefined;
  readonly notes: readonly string[];
}

/** `isPartial`: the value is merged into a filter that is there, so that it need not be whole. */
export function reviewRateLimits(schema: DescMessage, value: Message, isPartial: boolean, registry: Registry): RateLimitReview {
  const notes: string[] = [];
  try {
    new Reviewer(isPartial, registry, notes).visit(reflect(schema, value), 'value', false);
    return { problem: undefined, notes };
  } catch (error) {
    return { problem: messageOf(error), notes };
  }
}

class Reviewer {
  readonly #isPartial: boolean;
  readonly #registry: Registry;
  readonly #notes: string[];

  constructor(isPartial: boolean, registry: Registry, notes: string[]) {
    this.#isPartial = isPartial;
    this.#registry = registry;
    this.#notes = notes;
  }

  visit(reflected: ReflectMessage, place: string, isOfRoute: boolean): void {
    const { desc, message } = reflected;
    if (desc.typeName === RouteRateLimitSchema.typeName) return checkRouteRateLimits([message as RouteRateLimit], place);
    if (desc.typeName === AnySchema.typeName) return this.#visitPacked(message as Any, place, isOfRoute);
    for (const field of desc.fields) {
      if (!isFieldSet(message, field)) continue;
      const below = `${place}.${field.name}`;
      if (field.fieldKind === 'message') this.visit(reflected.get(field) as ReflectMessage, below, isOfRoute);
      else if (field.fieldKind === 'list' && field.listKind === 'message')
        for (const [i, item] of [...reflected.get(field)].entries()) this.visit(item as ReflectMessage, `${below}[${i}]`, isOfRoute);
      else if (field.fieldKind === 'map' && field.mapKind === 'message')
        for (const [key, item] of reflected.get(field).entries())
          this.visit(item as ReflectMessage, `${below}.${String(key)}`, field.localName === 'typedPerFilterConfig');
    }
  }

  #visitPacked(any: Any, place: string, isOfRoute: boolean): void {
    const schema = this.#registry.getMessage(any.typeUrl.slice(any.typeUrl.lastIndexOf('/') + 1));
    if (schema === undefined) return;
    const message = fromBinary(schema, any.value);
    const isWhole = isOfRoute || !this.#isPartial;
    switch (schema.typeName) {
      case LocalRateLimitSchema.typeName:
        if (isWhole) this.#visitLocal(message as LocalRateLimit, place, isOfRoute);
        return;
      case RateLimitSchema.typeName:
        if (isWhole) checkRateLimit(message as RateLimit, place);
        return;
      case RateLimitPerRouteSchema.typeName:
        return checkRateLimitPerRoute(message as RateLimitPerRoute, place);
      default:
        this.visit(reflect(schema, message), place, isOfRoute);
    }
  }

  #visitLocal(limit: LocalRateLimit, place: string, isOfRoute: boolean): void {
    checkLocalRateLimit(limit, place, isOfRoute);
    // Without a bucket the filter is there for what routes say to it.
    if (limit.tokenBucket === undefined && limit.descriptors.length === 0) return;
    for (const field of ['filterEnabled', 'filterEnforced'] as const)
      if (!limit[field]?.defaultValue?.numerator) {
        const name = field === 'filterEnabled' ? 'filter_enabled' : 'filter_enforced';
        this.#notes.push(`${place}: ${name} is absent or 0, so the limit is ${field === 'filterEnabled' ? 'not counted' : 'counted but not enforced'}`);
      }
  }
}
