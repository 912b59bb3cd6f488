import { createRegistry, type DescMessage, fromJson, type JsonValue, type Message, type MessageShape } from '@bufbuild/protobuf';
import { StructSchema } from '@bufbuild/protobuf/wkt';
import { isPlainObject } from '@mizzen/api';
import { messageOf } from '@mizzen/common';
import { compileRegex } from '@mizzen/common/linear-regex';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { FilterChainSchema, FilterSchema, ListenerFilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteSchema, VirtualHostSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { knownMessages } from '@mizzen/envoy-api/known-messages';
import { gatewayNameLabel } from '../gateway-api/listeners.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import { type Configured, rootNamespace } from '../snapshot.ts';
import { reviewRateLimits } from './check-rate-limits.ts';
import type { ApplyTo, ConfigPatchSpec, EnvoyFilterSpec, Operation, PatchMatchSpec } from './types.ts';

/** One patch of an EnvoyFilter, read. */
export interface Patch {
  readonly filter: Configured<EnvoyFilterSpec>;
  readonly index: number;
  readonly applyTo: ApplyTo;
  readonly operation: Operation;
  readonly match: PatchMatchSpec;
  /** As the message that the place takes; undefined: there is none (REMOVE). */
  readonly value: Message | undefined;
}

export const registry = createRegistry(...knownMessages, StructSchema);

/** What each place takes. */
export const schemas: Readonly<Partial<Record<ApplyTo, DescMessage>>> = {
  CLUSTER: ClusterSchema,
  LISTENER: ListenerSchema,
  FILTER_CHAIN: FilterChainSchema,
  NETWORK_FILTER: FilterSchema,
  HTTP_FILTER: HttpFilterSchema,
  LISTENER_FILTER: ListenerFilterSchema,
  ROUTE_CONFIGURATION: RouteConfigurationSchema,
  VIRTUAL_HOST: VirtualHostSchema,
  HTTP_ROUTE: RouteSchema,
};

const operations: Readonly<Partial<Record<ApplyTo, readonly Operation[]>>> = {
  CLUSTER: ['MERGE', 'ADD', 'REMOVE', 'REPLACE'],
  LISTENER: ['MERGE', 'ADD', 'REMOVE', 'REPLACE'],
  FILTER_CHAIN: ['MERGE', 'ADD', 'REMOVE'],
  NETWORK_FILTER: ['MERGE', 'ADD', 'REMOVE', 'INSERT_BEFORE', 'INSERT_AFTER', 'INSERT_FIRST', 'REPLACE'],
  HTTP_FILTER: ['MERGE', 'ADD', 'REMOVE', 'INSERT_BEFORE', 'INSERT_AFTER', 'INSERT_FIRST', 'REPLACE'],
  LISTENER_FILTER: ['MERGE', 'ADD', 'REMOVE', 'INSERT_BEFORE', 'INSERT_AFTER', 'INSERT_FIRST', 'REPLACE'],
  ROUTE_CONFIGURATION: ['MERGE'],
  VIRTUAL_HOST: ['MERGE', 'ADD', 'REMOVE', 'REPLACE'],
  HTTP_ROUTE: ['MERGE', 'ADD', 'REMOVE', 'INSERT_BEFORE', 'INSERT_AFTER', 'INSERT_FIRST', 'REPLACE'],
};

/** The patches of one object; `problems`: those that cannot be read, with the reason. */
export interface ReadFilter {
  readonly patches: readonly Patch[];
  readonly problems: readonly { readonly index: number; readonly message: string }[];
  /** What is legal and has less effect than its writer may expect. */
  readonly notes: readonly { readonly index: number; readonly message: string }[];
}

const read = new WeakMap<EnvoyFilterSpec, ReadFilter>();

/** Reads an EnvoyFilter once, however many proxies it is for. */
export function readFilter(filter: Configured<EnvoyFilterSpec>): ReadFilter {
  let known = read.get(filter.spec);
  if (known === undefined) {
    const patches: Patch[] = [];
    const problems: { index: number; message: string }[] = [];
    const notes: { index: number; message: string }[] = [];
    for (const [index, spec] of (filter.spec.configPatches ?? []).entries()) {
      const one = readPatch(filter, spec, index);
      if (typeof one === 'string') {
        problems.push({ index, message: one });
        continue;
      }
      const schema = schemas[one.applyTo];
      const review = one.value && schema && reviewRateLimits(schema, one.value, one.operation === 'MERGE', registry);
      if (review?.problem !== undefined) problems.push({ index, message: review.problem });
      else patches.push(one);
      for (const message of review?.notes ?? []) notes.push({ index, message });
    }
    read.set(filter.spec, (known = { patches, problems, notes }));
  }
  return known;
}

function readPatch(filter: Configured<EnvoyFilterSpec>, spec: ConfigPatchSpec, index: number): Patch | string {
  const { applyTo, match = {}, patch } = spec;
  const schema = schemas[applyTo];
  if (applyTo === 'BOOTSTRAP') return 'BOOTSTRAP is not patched: proxies of Mizzen have no bootstrap, their command line says what one would';
  if (applyTo === 'EXTENSION_CONFIG') return 'EXTENSION_CONFIG is not patched: filters have their configuration with them, patch HTTP_FILTER';
  if (schema === undefined) return `applyTo ${applyTo} is not known`;
  const operation = patch?.operation ?? 'INVALID';
  const allowed = operations[applyTo]!;
  if (!allowed.includes(operation)) return `operation ${operation} makes no sense for ${applyTo}: ${allowed.join(', ')}`;
  if (match.context === 'WAYPOINT') return 'there are no waypoints';
  const base = { filter, index, applyTo, operation, match };
  if (operation === 'REMOVE') return { ...base, value: undefined };
  if (!isPlainObject(patch?.value)) return `operation ${operation} needs a value`;
  try {
    return { ...base, value: fromJson(schema, withoutTypedStructs(patch!.value) as JsonValue, { registry }) as MessageShape<typeof schema> };
  } catch (error) {
    return `the value cannot be read as ${schema.typeName}: ${messageOf(error).replace(/^cannot decode (?:message|field) /, '')}`;
  }
}

/** Envoy's TypedStruct is another way to write what `@type` says. */
function withoutTypedStructs(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutTypedStructs);
  if (!isPlainObject(value)) return value;
  const type = value['@type'];
  const url = value['type_url'] ?? value['typeUrl'];
  if (typeof type === 'string' && type.endsWith('.TypedStruct') && typeof url === 'string')
    return { '@type': url, ...(withoutTypedStructs(value['value'] ?? {}) as object) };
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, withoutTypedStructs(entry)]));
}

/** Those for a proxy, in the order in which they are applied: by priority, the root namespace's first, the oldest first. */
export function patchesFor(view: ProxyView, filters: readonly Configured<EnvoyFilterSpec>[]): Patch[] {
  const isRoot = ({ namespace }: Configured<EnvoyFilterSpec>) => Number(namespace === rootNamespace);
  return filters
    .filter((filter) => isFor(filter, view))
    .sort((a, b) => (a.spec.priority ?? 0) - (b.spec.priority ?? 0) || isRoot(b) - isRoot(a))
    .flatMap((filter) => readFilter(filter).patches)
    .filter(({ match }) => proxyFits(match, view));
}

/** Whether a filter selects a proxy. */
export function isFor({ namespace, spec }: Configured<EnvoyFilterSpec>, view: ProxyView): boolean {
  if (namespace !== rootNamespace && namespace !== view.namespace) return false;
  if (spec.targetRefs?.length)
    return spec.targetRefs.some(({ kind, name }) => kind === 'Gateway' && namespace === view.namespace && view.labels[gatewayNameLabel] === name);
  return selects(spec.workloadSelector?.labels, view.labels);
}

function proxyFits({ context = 'ANY', proxy }: PatchMatchSpec, view: ProxyView): boolean {
  if (context === 'GATEWAY' ? view.type !== 'gateway' : context !== 'ANY' && view.type === 'gateway') return false;
  if (proxy?.proxyVersion && !versionFits(proxy.proxyVersion, view)) return false;
  return Object.entries(proxy?.metadata ?? {}).every(([name, value]) => view.metadata[name] === value);
}

/** The version of Istio whose API this is: proxies that do not say another are taken for it. */
const istioVersion = '1.32.0';

function versionFits(pattern: string, view: ProxyView): boolean {
  const version = view.metadata['ISTIO_VERSION'];
  try {
    return compileRegex(pattern)
      .matcher(typeof version === 'string' ? version : istioVersion)
      .find();
  } catch {
    return false;
  }
}
