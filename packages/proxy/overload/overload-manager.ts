import { getHeapStatistics } from 'node:v8';
import { toJson } from '@bufbuild/protobuf';
import { StructSchema } from '@bufbuild/protobuf/wkt';
import { errorBoundary, type Logger, MizzenError } from '@mizzen/common';
import { durationToMs, unpackAny } from '@mizzen/envoy-api';
import type { OverloadManager as OverloadManagerMessage } from '@mizzen/envoy-api/gen/envoy/config/overload/v3/overload_pb.js';
import { DownstreamConnectionsConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections_pb.js';
import { FixedHeapConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap_pb.js';
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

type Action = 'disablesKeepAlive' | 'refusesRequests' | 'refusesConnections';
type Resource = 'memory' | 'loop';
type Thresholds = Readonly<Partial<Record<Resource, number>>>;

const gib = 1024 ** 3;

/**
 * What holds without configuration: far above what a proxy needs, so that it only acts when the alternative is to die. Envoy acts on
 * nothing unless told; a proxy that runs out of memory is of no use to anybody.
 */
export const defaultOverloadSettings: OverloadSettings = {
  refreshIntervalMs: 1_000,
  maxMemoryBytes: 2 * gib,
  maxLoopDelayMs: 5_000,
  maxConnections: Number.POSITIVE_INFINITY,
  thresholds: {
    disablesKeepAlive: { memory: 0.9, loop: 0.5 },
    refusesRequests: { memory: 0.95, loop: 1 },
    refusesConnections: { memory: 0.98 },
  },
};

const actionNames: Readonly<Record<string, Action>> = {
  'envoy.overload_actions.disable_http_keepalive': 'disablesKeepAlive',
  'envoy.overload_actions.stop_accepting_requests': 'refusesRequests',
  'envoy.overload_actions.stop_accepting_connections': 'refusesConnections',
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
  const thresholds: Record<Action, Partial<Record<Resource, number>>> = { disablesKeepAlive: {}, refusesRequests: {}, refusesConnections: {} };
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
  return { refreshIntervalMs: durationToMs(message.refreshInterval) ?? 1_000, maxMemoryBytes, maxLoopDelayMs, maxConnections, thresholds };
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

/** Looks at what the process has left, and sets what `OverloadState` says. */
export class OverloadManager {
  readonly #settings: OverloadSettings;
  readonly #state: OverloadState;
  readonly #logger: Logger;
  readonly #heapLimitBytes: number;
  #timer: NodeJS.Timeout | undefined;
  #expectedAt: number;

  constructor(settings: OverloadSettings, state: OverloadState, logger: Logger) {
    this.#settings = settings;
    this.#state = state;
    this.#logger = logger;
    this.#heapLimitBytes = getHeapStatistics().heap_size_limit;
    this.#timer = undefined;
    this.#expectedAt = 0;
    state.maxConnections = settings.maxConnections;
  }

  start(): void {
    this.#expectedAt = performance.now() + this.#settings.refreshIntervalMs;
    this.#timer = setInterval(() => {
      const now = performance.now();
      const lateMs = Math.max(0, now - this.#expectedAt);
      this.#expectedAt = now + this.#settings.refreshIntervalMs;
      boundary.run(() => {
        this.apply(residentBytes(), getHeapStatistics().used_heap_size, lateMs);
      });
    }, this.#settings.refreshIntervalMs);
    this.#timer.unref();
  }

  /** Acts on measurements: bytes, and how late the event loop was in milliseconds. */
  apply(rssBytes: number, heapUsedBytes: number, loopDelayMs: number): void {
    const { maxMemoryBytes, maxLoopDelayMs, thresholds } = this.#settings;
    const pressure = { memory: Math.max(rssBytes / maxMemoryBytes, heapUsedBytes / this.#heapLimitBytes), loop: loopDelayMs / maxLoopDelayMs };
    for (const action of Object.keys(thresholds) as Action[]) {
      const { memory, loop } = thresholds[action];
      const isOn = (memory !== undefined && pressure.memory >= memory) || (loop !== undefined && pressure.loop >= loop);
      if (isOn === this.#state[action]) continue;
      this.#state[action] = isOn;
      const say = isOn ? 'warn' : 'info';
      this.#logger[say](isOn ? 'overload: an action begins' : 'overload: an action ends', {
        action: Object.keys(actionNames).find((name) => actionNames[name] === action),
        memory: pressure.memory.toFixed(2),
        eventLoopDelay: pressure.loop.toFixed(2),
      });
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
