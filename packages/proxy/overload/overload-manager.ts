import { totalmem } from 'node:os';
import { getHeapSpaceStatistics, getHeapStatistics } from 'node:v8';
import { toJson } from '@bufbuild/protobuf';
import { StructSchema } from '@bufbuild/protobuf/wkt';
import { collectAll, errorBoundary, type Logger, MizzenError } from '@mizzen/common';
import { durationToTimerMs, unpackAny } from '@mizzen/envoy-api';
import type { OverloadManager as OverloadManagerMessage } from '@mizzen/envoy-api/gen/envoy/config/overload/v3/overload_pb.js';
import { DownstreamConnectionsConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections_pb.js';
import { FixedHeapConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap_pb.js';
import type { HeldVisitor } from '../http/http-connection.ts';
import type { OverloadState } from './overload-state.ts';

/** When to do without what (envoy overload.proto `OverloadManager`). */
export interface OverloadSettings {
  readonly refreshIntervalMs: number;
  /** Memory of the process at which the pressure is 1: resident, or of the JavaScript heap where that runs out first. */
  readonly maxMemoryBytes: number;
  /** Delay of the event loop at which the pressure is 1. */
  readonly maxLoopDelayMs: number;
  readonly maxConnections: number;
  /** Pressure (0 to 1, of memory or of the loop, whichever is higher) from which an action is taken. */
  readonly thresholds: Readonly<Record<Action, Thresholds>>;
}

type Action = 'disablesKeepAlive' | 'refusesRequests' | 'refusesConnections' | 'resetsStreams';
type Resource = 'memory' | 'loop';
type Thresholds = Readonly<Partial<Record<Resource, number>>>;

const gib = 1024 ** 3;

/** Memory that a container leaves to this process. */
function constrainedBytes(): number {
  const constrained = process.constrainedMemory();
  return constrained > 0 && constrained < totalmem() ? constrained : Number.POSITIVE_INFINITY;
}

/**
 * What holds without configuration: far above what a proxy needs, so that it only acts when the alternative is to die. Envoy acts on
 * nothing unless told; a proxy that runs out of memory is of no use to anybody.
 */
export const defaultOverloadSettings: OverloadSettings = {
  refreshIntervalMs: 250,
  maxMemoryBytes: Math.min(2 * gib, constrainedBytes()),
  maxLoopDelayMs: 5_000,
  maxConnections: Number.POSITIVE_INFINITY,
  thresholds: {
    disablesKeepAlive: { memory: 0.9, loop: 0.5 },
    refusesRequests: { memory: 0.95, loop: 1 },
    refusesConnections: { memory: 0.98 },
    resetsStreams: { memory: 1 },
  },
};

const actionNames: Readonly<Record<string, Action>> = {
  'envoy.overload_actions.disable_http_keepalive': 'disablesKeepAlive',
  'envoy.overload_actions.stop_accepting_requests': 'refusesRequests',
  'envoy.overload_actions.stop_accepting_connections': 'refusesConnections',
  'envoy.overload_actions.reset_high_memory_stream': 'resetsStreams',
};

/** Compiles the `overload_manager` of a bootstrap. Monitors and actions that are not known are refused. */
export function compileOverload(message: OverloadManagerMessage | undefined): OverloadSettings {
  if (message === undefined) return defaultOverloadSettings;
  const resources = new Map<string, Resource>();
  let { maxMemoryBytes, maxLoopDelayMs, maxConnections } = defaultOverloadSettings;
  for (const monitor of message.resourceMonitors) {
    const any = monitor.configType.case === 'typedConfig' ? monitor.configType.value : undefined;
    switch (monitor.name) {
      case 'envoy.resource_monitors.fixed_heap':
        maxMemoryBytes = Number(unpackAny(FixedHeapConfigSchema, any)?.maxHeapSizeBytes ?? 0n) || maxMemoryBytes;
        resources.set(monitor.name, 'memory');
        break;
      case 'envoy.resource_monitors.global_downstream_max_connections':
        maxConnections = Number(unpackAny(DownstreamConnectionsConfigSchema, any)?.maxActiveDownstreamConnections ?? 0n) || maxConnections;
        break;
      case 'mizzen.resource_monitors.event_loop_delay': {
        const struct = unpackAny(StructSchema, any);
        const fields = struct === undefined ? {} : (toJson(StructSchema, struct) as Record<string, unknown>);
        maxLoopDelayMs = Number(fields['max_delay_ms'] ?? maxLoopDelayMs);
        resources.set(monitor.name, 'loop');
        break;
      }
      default:
        throw new MizzenError('unsupported-overload', `overload_manager: the resource monitor ${monitor.name} is not supported`);
    }
  }
  const thresholds: Record<Action, Partial<Record<Resource, number>>> = {
    disablesKeepAlive: {},
    refusesRequests: {},
    refusesConnections: {},
    resetsStreams: {},
  };
  for (const { name, triggers } of message.actions) {
    const action = actionNames[name];
    if (action === undefined)
      throw new MizzenError('unsupported-overload', `overload_manager: the action ${name} is not supported. Supported: ${Object.keys(actionNames).join(', ')}`);
    for (const trigger of triggers) {
      const resource = resources.get(trigger.name);
      if (resource === undefined)
        throw new MizzenError('invalid-overload', `overload_manager: ${name} is triggered by ${trigger.name}, which no resource monitor is named`);
      const { triggerOneof: kind } = trigger;
      // A scaled trigger acts gradually; what can only be on or off goes on when it saturates.
      const value = kind.case === 'threshold' ? kind.value.value : kind.case === 'scaled' ? kind.value.saturationThreshold : undefined;
      if (value !== undefined) thresholds[action][resource] = Math.min(value, thresholds[action][resource] ?? 1);
    }
  }
  return { refreshIntervalMs: Math.max(10, durationToTimerMs(message.refreshInterval) ?? 1_000), maxMemoryBytes, maxLoopDelayMs, maxConnections, thresholds };
}

const boundary = errorBoundary('timer.overload');
let lastResidentBytes = 0;

/** Resident memory; the last known figure while the system has no descriptor to tell it. */
function residentBytes(): number {
  try {
    lastResidentBytes = process.memoryUsage.rss();
  } catch {
    // EMFILE: libuv reads /proc/self/stat.
  }
  return lastResidentBytes;
}

/** V8 gives up when its old generation stays above 80 % of the limit after collections; what has been accepted by then still grows. */
const usableShare = 0.6;
/** From this share of what is usable on it is found out how much of it is garbage. */
const suspiciousShare = 0.85;
/** Collections to find that out take at most this share of the time. */
const maxCollectShare = 0.05;
const minCollectIntervalMs = 1_000;
/** What is reserved for young objects counts in `heap_size_limit`: three semi-spaces of this size unless a flag says otherwise. */
const defaultSemiSpaceMib = 64;
/** Streams that hold less than this are not reset: nothing would be gained. */
const minResetBytes = 16 * 1024;
/** One in so many of those that hold more is reset in each turn, the largest first. */
const resetShare = 10;

/** Bytes of the old generation beyond which V8 ends the process. */
export function oldGenerationLimitBytes(args: readonly string[] = [...(process.env['NODE_OPTIONS'] ?? '').split(/\s+/), ...process.execArgv]): number {
  const flag = (name: string) => {
    const values = args.map((arg) => new RegExp(`^--${name}=(\\d+)$`).exec(arg.replaceAll('_', '-'))?.[1]).filter((value) => value !== undefined);
    return values.length === 0 ? undefined : Number(values.at(-1)) * 1024 ** 2;
  };
  const old = flag('max-old-space-size');
  if (old) return old;
  const reserved = 3 * (flag('max-semi-space-size') ?? defaultSemiSpaceMib * 1024 ** 2);
  const limit = getHeapStatistics().heap_size_limit;
  return Math.max(limit - reserved, limit / 2);
}

function oldGenerationBytes(): number {
  let used = 0;
  for (const space of getHeapSpaceStatistics()) if (!space.space_name.startsWith('new_')) used += space.space_used_size;
  return used;
}

/** Where measurements come from; tests have their own. */
export interface Meters {
  residentBytes(): number;
  /** Memory outside of the heap that belongs to objects of it. */
  externalBytes(): number;
  heapBytes(): number;
  maxHeapBytes: number;
  collect(): void;
  now(): number;
}

const processMeters = (): Meters => ({
  residentBytes,
  externalBytes: () => getHeapStatistics().external_memory,
  heapBytes: oldGenerationBytes,
  maxHeapBytes: oldGenerationLimitBytes(),
  collect: collectAll,
  now: () => performance.now(),
});

export interface OverloadDependencies {
  /** Visits what waits for slow readers. */
  readonly held: (visit: HeldVisitor) => void;
  readonly onReset: () => void;
  readonly logger: Logger;
  readonly meters?: Meters;
}

/** Looks at what the process has left, and sets what `OverloadState` says. */
export class OverloadManager {
  readonly #settings: OverloadSettings;
  readonly #state: OverloadState;
  readonly #dependencies: OverloadDependencies;
  readonly #meters: Meters;
  readonly #usableHeapBytes: number;
  #timer: NodeJS.Timeout | undefined;
  #expectedAt: number;
  #loopDelayMs: number;
  #mayCollectAt: number;

  constructor(settings: OverloadSettings, state: OverloadState, dependencies: OverloadDependencies) {
    this.#settings = settings;
    this.#state = state;
    this.#dependencies = dependencies;
    this.#meters = dependencies.meters ?? processMeters();
    this.#usableHeapBytes = usableShare * this.#meters.maxHeapBytes;
    this.#timer = undefined;
    this.#expectedAt = 0;
    this.#loopDelayMs = 0;
    this.#mayCollectAt = 0;
    state.maxConnections = settings.maxConnections;
    state.check = () => {
      if (this.#meters.heapBytes() > suspiciousShare * this.#usableHeapBytes) boundary.run(() => this.look());
    };
  }

  start(): void {
    this.#expectedAt = performance.now() + this.#settings.refreshIntervalMs;
    this.#timer = boundary.every(this.#settings.refreshIntervalMs, () => {
      const now = performance.now();
      this.#loopDelayMs = Math.max(0, now - this.#expectedAt);
      this.#expectedAt = now + this.#settings.refreshIntervalMs;
      this.look();
    });
    this.#timer.unref();
  }

  /** Measures, and begins or ends actions. */
  look(): void {
    const { maxMemoryBytes } = this.#settings;
    const resident = this.#meters.residentBytes() / maxMemoryBytes;
    const heap = this.#heapPressure();
    this.#apply(Math.max(resident, heap), this.#loopDelayMs);
    if (this.#state.resetsStreams) this.#resetLargest(heap, this.#meters.externalBytes() / maxMemoryBytes);
  }

  /** The share of the usable heap that is in use, without garbage where it is high. */
  #heapPressure(): number {
    const meters = this.#meters;
    const used = meters.heapBytes() / this.#usableHeapBytes;
    const startedAt = meters.now();
    if (used < suspiciousShare || startedAt < this.#mayCollectAt) return used;
    meters.collect();
    const endedAt = meters.now();
    this.#mayCollectAt = endedAt + Math.max(minCollectIntervalMs, (endedAt - startedAt) / maxCollectShare);
    return meters.heapBytes() / this.#usableHeapBytes;
  }

  #apply(memory: number, loopDelayMs: number): void {
    const { maxLoopDelayMs, thresholds } = this.#settings;
    const pressure = { memory, loop: loopDelayMs / maxLoopDelayMs };
    for (const action of Object.keys(thresholds) as Action[]) {
      const { memory: memoryLimit, loop } = thresholds[action];
      const isOn = (memoryLimit !== undefined && pressure.memory >= memoryLimit) || (loop !== undefined && pressure.loop >= loop);
      if (isOn === this.#state[action]) continue;
      this.#state[action] = isOn;
      const say = isOn ? 'warn' : 'info';
      this.#dependencies.logger[say](isOn ? 'overload: an action begins' : 'overload: an action ends', {
        action: Object.keys(actionNames).find((name) => actionNames[name] === action),
        memory: pressure.memory.toFixed(2),
        eventLoopDelay: pressure.loop.toFixed(2),
      });
    }
  }

  /** Resident memory may stay high after it has been freed: streams are reset only while they hold a part of it that matters. */
  #resetLargest(heap: number, external: number): void {
    if (heap < 1 && external < 0.1) return;
    const held: { readonly bytes: number; readonly reset: () => void }[] = [];
    this.#dependencies.held((bytes, reset) => bytes >= minResetBytes && held.push({ bytes, reset }));
    if (held.length === 0) return;
    held.sort((a, b) => b.bytes - a.bytes);
    const chosen = held.slice(0, Math.ceil(held.length / resetShare));
    for (const { reset } of chosen) if (boundary.run(reset)) this.#dependencies.onReset();
    this.#dependencies.logger.warn('overload: streams with the most unread bytes have been reset', {
      streams: chosen.length,
      bytes: chosen.reduce((sum, { bytes }) => sum + bytes, 0),
    });
  }

  close(): void {
    clearInterval(this.#timer);
    this.#state.check = () => {};
  }
}
