import net from 'node:net';
import { MizzenError } from '@mizzen/common';
import type { Metadata } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { type RateLimit, type RateLimit_Action, RateLimit_Action_MetaData_Source } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import type { MetadataKey } from '@mizzen/envoy-api/gen/envoy/type/metadata/v3/metadata_pb.js';
import { RateLimitUnit } from '@mizzen/envoy-api/gen/envoy/type/v3/ratelimit_unit_pb.js';
import { checkRouteRateLimits } from '@mizzen/gateway/rate-limits';
import { utf8Bytes } from '../message/header-bytes.ts';
import type { RequestHead } from '../message/request-head.ts';
import { compileQueryParameter } from './compile-match.ts';
import { compileHeaderMatcher, pseudoHeaderReader } from './matchers.ts';
import type { HasMetadata } from './metadata-matcher.ts';

/** One key and value by which a limiter tells requests apart. Byte strings, as the headers that they come from. */
export interface DescriptorEntry {
  readonly key: string;
  readonly value: string;
}

/** What a limiter is asked about a request. */
export interface Descriptor {
  readonly entries: readonly DescriptorEntry[];
  /** A limit that takes the place of the service's own. */
  readonly override: { readonly requestsPerUnit: number; readonly unit: RateLimitUnit } | undefined;
}

/** What of a request descriptors are made of. */
export interface DescribedRequest extends HasMetadata {
  readonly head: RequestHead;
  readonly remoteAddress: string;
  /** The cluster that the route has chosen. */
  readonly upstreamCluster: string;
}

/** One `rate_limits` entry of a route or virtual host, compiled. */
export interface RateLimitPolicy {
  readonly stage: number;
  /** undefined: the policy does not apply to this request. */
  describe(request: DescribedRequest, sourceCluster: string): Descriptor | undefined;
}

/** What a route and its virtual host say to the rate limit filters. */
export interface RouteRateLimits {
  readonly ofRoute: readonly RateLimitPolicy[];
  readonly ofHost: readonly RateLimitPolicy[];
  /** `include_vh_rate_limits` of the route: both count, whatever the filter says. */
  readonly includesHost: boolean;
}

/** undefined: the action produces no entry, and so the policy no descriptor. `skip`: it adds nothing to the descriptor. */
type Action = (request: DescribedRequest, sourceCluster: string) => DescriptorEntry | 'skip' | undefined;

/** envoy route_components.proto `RateLimit`. `metadata` is the route's. */
export function compileRateLimits(limits: readonly RateLimit[], metadata: Metadata | undefined, place: string): RateLimitPolicy[] {
  checkRouteRateLimits(limits, place);
  return limits.map((limit) => compileRateLimit(limit, metadata));
}

function compileRateLimit(limit: RateLimit, metadata: Metadata | undefined): RateLimitPolicy {
  const stage = limit.stage ?? 0;
  const actions = limit.actions.map((action) => compileAction(action, metadata));
  const override = limit.limit && compileOverride(limit.limit.overrideSpecifier);
  return {
    stage,
    describe(request, sourceCluster) {
      const entries: DescriptorEntry[] = [];
      for (let i = 0; i < actions.length; i++) {
        const entry = actions[i]!(request, sourceCluster);
        if (entry === undefined) return undefined;
        if (entry !== 'skip') entries.push(entry);
      }
      // A descriptor without entries would be about all requests.
      return entries.length === 0 ? undefined : { entries, override: override?.(request) };
    },
  };
}

function compileAction({ actionSpecifier: action }: RateLimit_Action, metadata: Metadata | undefined): Action {
  switch (action.case) {
    case 'sourceCluster':
      return (_request, sourceCluster) => ({ key: 'source_cluster', value: sourceCluster });
    case 'destinationCluster':
      return ({ upstreamCluster }) => ({ key: 'destination_cluster', value: utf8Bytes(upstreamCluster) });
    case 'requestHeaders': {
      const { skipIfAbsent } = action.value;
      const key = utf8Bytes(action.value.descriptorKey);
      const name = action.value.headerName.toLowerCase();
      const read = pseudoHeaderReader(name) ?? (({ headers }: RequestHead) => headers.get(name));
      return ({ head }) => {
        const value = read(head);
        return value === undefined ? (skipIfAbsent ? 'skip' : undefined) : { key, value };
      };
    }
    case 'remoteAddress':
      return ({ remoteAddress }) => (remoteAddress === '' ? undefined : { key: 'remote_address', value: plainAddress(remoteAddress) });
    case 'maskedRemoteAddress': {
      const v4Bits = action.value.v4PrefixMaskLen ?? 32;
      const v6Bits = action.value.v6PrefixMaskLen ?? 128;
      return ({ remoteAddress }) => (remoteAddress === '' ? undefined : { key: 'masked_remote_address', value: maskedAddress(remoteAddress, v4Bits, v6Bits) });
    }
    case 'genericKey': {
      const value = utf8Bytes(action.value.descriptorValue);
      const entry = { key: utf8Bytes(action.value.descriptorKey) || 'generic_key', value };
      return () => entry;
    }
    case 'headerValueMatch': {
      const { expectMatch = true, headers, descriptorKey } = action.value;
      const entry = { key: utf8Bytes(descriptorKey) || 'header_match', value: utf8Bytes(action.value.descriptorValue) };
      const conditions = headers.map(compileHeaderMatcher);
      return ({ head }) => (conditions.every((condition) => condition.matches(head)) === expectMatch ? entry : undefined);
    }
    case 'queryParameterValueMatch': {
      const { expectMatch = true, queryParameters, descriptorKey } = action.value;
      const entry = { key: utf8Bytes(descriptorKey) || 'query_match', value: utf8Bytes(action.value.descriptorValue) };
      const conditions = queryParameters.map(compileQueryParameter);
      return ({ head }) => (conditions.every((condition) => condition.matches(head)) === expectMatch ? entry : undefined);
    }
    case 'metadata':
    case 'dynamicMetadata': {
      const { descriptorKey, metadataKey, defaultValue } = action.value;
      const isOfRoute = action.case === 'metadata' && action.value.source === RateLimit_Action_MetaData_Source.ROUTE_ENTRY;
      const skipIfAbsent = action.case === 'metadata' && action.value.skipIfAbsent;
      const key = utf8Bytes(descriptorKey);
      const read = compileMetadataKey(metadataKey);
      const ofRoute: HasMetadata = { metadata: (filter) => metadata?.filterMetadata[filter] };
      return (request) => {
        const found = read(isOfRoute ? ofRoute : request);
        const value = typeof found === 'string' && found !== '' ? found : defaultValue;
        return value === '' ? (skipIfAbsent ? 'skip' : undefined) : { key, value: utf8Bytes(value) };
      };
    }
    default:
      throw new MizzenError('unsupported-route', `a rate limit action of type ${action.case ?? '(none)'} is not supported`);
  }
}

/** What is at a path in the metadata of a filter, or of a route. */
function compileMetadataKey(key: MetadataKey | undefined): (source: HasMetadata) => unknown {
  const path = (key?.path ?? []).map(({ segment }) => segment.value ?? '');
  return (source) => {
    let at = source.metadata(key?.key ?? '');
    for (const name of path) at = isRecord(at) && Object.hasOwn(at, name) ? at[name] : undefined;
    return at;
  };
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> => typeof value === 'object' && value !== null && !Array.isArray(value);

function compileOverride(specifier: NonNullable<RateLimit['limit']>['overrideSpecifier']): (request: HasMetadata) => Descriptor['override'] {
  const read = compileMetadataKey(specifier.value?.metadataKey);
  return (request) => {
    const found = read(request);
    if (!isRecord(found)) return undefined;
    const { requests_per_unit: requestsPerUnit, unit: name } = found;
    const unit = typeof name === 'string' ? unitsByName.get(name) : undefined;
    if (typeof requestsPerUnit !== 'number' || unit === undefined || !(requestsPerUnit >= 0 && requestsPerUnit <= 4_294_967_295)) return undefined;
    return { requestsPerUnit: Math.floor(requestsPerUnit), unit };
  };
}

const unitsByName: ReadonlyMap<string, RateLimitUnit> = new Map(
  Object.entries(RateLimitUnit).flatMap(([name, unit]) => (typeof unit === 'number' ? [[name, unit] as const] : [])),
);

/** An IPv4 address on an IPv6 socket is one client with the IPv4 address. */
const plainAddress = (address: string): string => (address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address);

function maskedAddress(given: string, v4Bits: number, v6Bits: number): string {
  const address = plainAddress(given);
  if (net.isIPv4(address)) {
    const number = address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
    const masked = v4Bits === 0 ? 0 : number - (number % 2 ** (32 - v4Bits));
    return `${[24, 16, 8, 0].map((shift) => Math.floor(masked / 2 ** shift) % 256).join('.')}/${v4Bits}`;
  }
  const groups = ipv6Groups(address);
  const kept = groups.map((group, i) => {
    const bits = Math.min(16, Math.max(0, v6Bits - 16 * i));
    return group & ((0xffff << (16 - bits)) & 0xffff);
  });
  return `${new URL(`http://[${kept.map((group) => group.toString(16)).join(':')}]`).hostname.slice(1, -1)}/${v6Bits}`;
}

function ipv6Groups(address: string): number[] {
  const [head = '', tail] = (address.split('%', 1)[0] ?? '').split('::');
  const read = (text: string) => (text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16)));
  const [first, last] = [read(head), read(tail ?? '')];
  return tail === undefined ? first : [...first, ...new Array<number>(Math.max(0, 8 - first.length - last.length)).fill(0), ...last];
}
