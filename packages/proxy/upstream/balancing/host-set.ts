import type { Endpoint } from '../endpoint.ts';
import type { HashTable, MakeHashTable, Share } from './hash-table.ts';
import type { MakePicker, Picker } from './pickers.ts';

export interface BalancingSettings {
  readonly makePicker: MakePicker;
  /** undefined: chosen without regard to the request. */
  readonly makeHashTable: MakeHashTable | undefined;
  /** When fewer percent of a level's endpoints than this may be used, all of them are: it is rather the check that is wrong. 0: never. */
  readonly panicThreshold: number;
  /** A locality is chosen by its weight, then an endpoint in it (`locality_weighted_lb_config`). */
  readonly weighsLocalities: boolean;
  /** With no hosts that may be used, nothing is chosen, also in panic (`fail_traffic_on_panic`). */
  readonly failsOnPanic: boolean;
}

/** Endpoints of one priority and locality, as an assignment lists them. */
export interface LocalityEndpoints {
  /** 0 is the first that is used. */
  readonly priority: number;
  /** Of the locality among those of its priority; 0: it gets nothing where localities are weighed. */
  readonly weight: number;
  readonly endpoints: readonly Endpoint[];
}

interface Group {
  readonly endpoints: readonly Endpoint[];
  readonly picker: Picker;
  /** Its share of the level's load, summed up over the groups before it. */
  readonly upTo: number;
}

/** A locality's endpoints that may be chosen. */
interface Usable {
  readonly endpoints: readonly Endpoint[];
  /** As configured. */
  readonly weight: number;
  /** Less, where some of its endpoints are down: the others shall not take it all. */
  readonly effectiveWeight: number;
}

/** One priority: who may be chosen, and how. Made anew when that changes, and its tables when they are first needed. */
class Level {
  readonly candidates: readonly Endpoint[];
  readonly #localities: readonly Usable[];
  readonly #settings: BalancingSettings;
  #groups: readonly Group[] | undefined;
  #table: HashTable | undefined;
  /** Of the level before this one, until this has a table of its own. */
  #previousTable: HashTable | undefined;

  constructor(localities: readonly Usable[], settings: BalancingSettings, previous: Level | undefined) {
    this.#localities = localities.filter(({ weight }) => weight > 0);
    this.candidates = this.#localities.length === 1 ? this.#localities[0]!.endpoints : this.#localities.flatMap(({ endpoints }) => endpoints);
    this.#settings = settings;
    this.#groups = undefined;
    this.#table = undefined;
    this.#previousTable = previous?.lastTable;
  }

  get lastTable(): HashTable | undefined {
    return this.#table ?? this.#previousTable;
  }

  pick(random: () => number): Endpoint {
    this.#groups ??= this.#makeGroups();
    const groups = this.#groups;
    if (groups.length === 1) return groups[0]!.picker();
    const at = random();
    return (groups.find(({ upTo }) => at < upTo) ?? groups.at(-1)!).picker();
  }

  pickByHash(hash: bigint, attempt: number): Endpoint | undefined {
    if (this.#table === undefined) {
      this.#table = this.#settings.makeHashTable!(this.#shares(), this.#previousTable);
      this.#previousTable = undefined;
    }
    return this.#table.pick(hash, attempt);
  }

  #makeGroups(): Group[] {
    const { makePicker, weighsLocalities } = this.#settings;
    if (!weighsLocalities) return [{ endpoints: this.candidates, picker: makePicker(this.candidates), upTo: 1 }];
    const used = this.#localities.filter(({ endpoints }) => endpoints.length > 0);
    const total = used.reduce((sum, { effectiveWeight }) => sum + effectiveWeight, 0);
    let before = 0;
    return used.map(({ effectiveWeight, endpoints }) => ({ endpoints, picker: makePicker(endpoints), upTo: (before += effectiveWeight) / total }));
  }

  #shares(): Share[] {
    const total = (endpoints: readonly Endpoint[]) => endpoints.reduce((sum, { weight }) => sum + weight, 0);
    if (!this.#settings.weighsLocalities) {
      const all = total(this.candidates);
      return this.candidates.map((endpoint) => ({ endpoint, share: endpoint.weight / all }));
    }
    // A table changes less when a locality's share is as configured, whoever in it is down (thread_aware_lb_impl.cc).
    const ofLocalities = this.#localities.reduce((sum, { weight }) => sum + weight, 0);
    return this.#localities.flatMap(({ weight, endpoints }) => {
      const all = total(endpoints);
      return endpoints.map((endpoint) => ({ endpoint, share: (weight / ofLocalities) * (endpoint.weight / all) }));
    });
  }
}

/** What the tries of a request before this one mean for it. */
export interface EarlierTries {
  /** That were tried, in their order. */
  readonly endpoints: readonly Endpoint[];
  /** They are taken only when there is no other (`previous_hosts`). */
  readonly avoidsEndpoints: boolean;
  /** After every so many of them, their priorities are left out while there are others (`previous_priorities`); 0: never. */
  readonly avoidsPrioritiesAfter: number;
}

const noEndpoints: readonly Endpoint[] = [];

/** How often another endpoint is looked for than those that have just failed (envoy `host_selection_retry_max_attempts`). */
const maxLooks = 5;

/**
 * The endpoints of a cluster by priority and locality (envoy "Load balancing: priority levels, locality weighted, panic threshold"): a priority takes
 * what the ones before it cannot, in proportion to how many of its endpoints may be used, with 1.4 of what they could take counted as whole.
 */
export class HostSet {
  readonly #settings: BalancingSettings;
  readonly #random: () => number;
  #localities: readonly LocalityEndpoints[];
  #overprovisioning: number;
  #levels: readonly Level[];
  /** Of each level, how many percent of the whole load it can take. */
  #health: readonly number[];
  /** Of each level, percent of the load. */
  #loads: readonly number[];
  #availableCount: number;

  constructor(settings: BalancingSettings, random: () => number) {
    this.#settings = settings;
    this.#random = random;
    this.#localities = [];
    this.#overprovisioning = 140;
    this.#levels = [];
    this.#health = [];
    this.#loads = [];
    this.#availableCount = 0;
  }

  /** How many may be chosen because they are well. */
  get availableCount(): number {
    return this.#availableCount;
  }

  /** `overprovisioning`: percent (endpoint.proto `overprovisioning_factor`). */
  set(localities: readonly LocalityEndpoints[], overprovisioning = 140): void {
    this.#localities = localities;
    this.#overprovisioning = overprovisioning;
    this.refresh();
  }

  /** Looks anew at who may be chosen. */
  refresh(): void {
    const { panicThreshold, weighsLocalities, failsOnPanic } = this.#settings;
    const priorities = this.#localities.reduce((most, { priority }) => Math.max(most, priority + 1), 0);
    const byPriority = Array.from({ length: priorities }, (_, priority) => this.#localities.filter((locality) => locality.priority === priority));
    const counts = byPriority.map((localities) => {
      let all = 0;
      let well = 0;
      for (const { endpoints } of localities) {
        all += endpoints.length;
        for (const endpoint of endpoints) if (endpoint.isAvailable) well++;
      }
      return { all, well };
    });
    this.#availableCount = counts.reduce((sum, { well }) => sum + well, 0);
    const health = counts.map(({ all, well }) => (all === 0 ? 0 : Math.min(100, Math.floor((this.#overprovisioning * well) / all))));
    const totalHealth = totalOf(health);
    const isInPanic = counts.map(({ all, well }) => totalHealth < 100 && all > 0 && (100 * well) / all < panicThreshold);
    const before = this.#levels;
    this.#levels = byPriority.map((localities, priority) => {
      const usesAll = isInPanic[priority]! && !failsOnPanic;
      return new Level(
        localities.map(({ weight, endpoints }) => {
          const usable = usesAll ? endpoints : endpoints.every((endpoint) => endpoint.isAvailable) ? endpoints : endpoints.filter((one) => one.isAvailable);
          // A locality whose endpoints are down gives its share to the others.
          const worth = usesAll || endpoints.length === 0 ? 1 : Math.min(1, (this.#overprovisioning * usable.length) / (100 * endpoints.length));
          return { endpoints: usable, weight: weighsLocalities ? weight : 1, effectiveWeight: weight * worth };
        }),
        this.#settings,
        before[priority],
      );
    });
    this.#health = health;
    this.#loads = loadsOf(health, totalHealth, counts, isInPanic);
  }

  /** undefined: nobody may be chosen. */
  pick(hash: bigint | undefined, tries: EarlierTries | undefined): Endpoint | undefined {
    const level = this.#levels.length === 1 ? this.#levels[0]! : this.#chooseLevel(hash, tries === undefined ? this.#loads : this.#loadsAfter(tries));
    if (level === undefined) return undefined;
    const { candidates } = level;
    if (candidates.length <= 1) return candidates[0];
    const isByHash = this.#settings.makeHashTable !== undefined;
    const key = isByHash ? (hash ?? this.#randomHash()) : 0n;
    const avoid = tries?.avoidsEndpoints ? tries.endpoints : noEndpoints;
    if (avoid.length === 0) return isByHash ? level.pickByHash(key, 0) : level.pick(this.#random);
    for (let look = 0; look < maxLooks; look++) {
      const found = isByHash ? level.pickByHash(key, avoid.length + look) : level.pick(this.#random);
      if (found === undefined || !avoid.includes(found)) return found;
    }
    const others = candidates.filter((endpoint) => !avoid.includes(endpoint));
    const from = others.length > 0 ? others : candidates;
    return from[(this.#random() * from.length) | 0];
  }

  #chooseLevel(hash: bigint | undefined, loads: readonly number[]): Level | undefined {
    const at = hash === undefined ? this.#random() * 100 : Number(hash % 100n);
    let sum = 0;
    for (const [priority, load] of loads.entries()) {
      sum += load;
      if (at < sum) return this.#levels[priority];
    }
    return undefined;
  }

  /** Without the priorities that have been tried, until each that can take any load has been; then it begins anew (envoy previous_priorities.cc). */
  #loadsAfter({ endpoints, avoidsPrioritiesAfter }: EarlierTries): readonly number[] {
    if (avoidsPrioritiesAfter === 0) return this.#loads;
    let left = this.#health;
    let isAdjusted = false;
    for (let i = avoidsPrioritiesAfter; i <= endpoints.length; i += avoidsPrioritiesAfter) {
      const tried = endpoints.slice(i - avoidsPrioritiesAfter, i);
      left = left.map((one, priority) => (tried.some((endpoint) => this.#isOf(priority, endpoint)) ? 0 : one));
      isAdjusted = left.some((one) => one > 0);
      if (!isAdjusted) left = this.#health;
    }
    return isAdjusted ? sharesOf(left) : this.#loads;
  }

  #isOf(priority: number, endpoint: Endpoint): boolean {
    return this.#localities.some((locality) => locality.priority === priority && locality.endpoints.includes(endpoint));
  }

  #randomHash(): bigint {
    return (BigInt(Math.floor(this.#random() * 2 ** 32)) << 32n) | BigInt(Math.floor(this.#random() * 2 ** 32));
  }
}

function loadsOf(
  health: readonly number[],
  totalHealth: number,
  counts: readonly { readonly all: number; readonly well: number }[],
  isInPanic: readonly boolean[],
): number[] {
  const endpoints = counts.reduce((sum, { all }) => sum + all, 0);
  const isEverywhere = isInPanic.length > 0 && counts.every(({ all }, priority) => all === 0 || isInPanic[priority]);
  // All levels are in panic: they share by how many they have.
  if (isEverywhere && endpoints > 0) return spread(counts.map(({ all }) => (100 * all) / endpoints));
  if (totalHealth === 0) return counts.map(() => 0);
  return sharesOf(health);
}

/** Each level's part, as much of it as the levels before it leave. */
function sharesOf(health: readonly number[]): number[] {
  const total = totalOf(health);
  let left = 100;
  return spread(
    health.map((one) => {
      const load = Math.min(left, Math.floor((one * 100) / total));
      left -= load;
      return load;
    }),
  );
}

function totalOf(health: readonly number[]): number {
  return Math.min(
    100,
    health.reduce((sum, one) => sum + one, 0),
  );
}

/** What rounding has left over goes to the first that has any. */
function spread(loads: readonly number[]): number[] {
  const rest = 100 - loads.reduce((sum, load) => sum + load, 0);
  const first = loads.findIndex((load) => load > 0);
  return loads.map((load, i) => (i === first ? load + rest : load));
}
