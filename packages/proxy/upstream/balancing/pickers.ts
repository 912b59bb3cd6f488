import type { Endpoint } from '../endpoint.ts';

/** Chooses one of the endpoints it was made for. */
export type Picker = () => Endpoint;
/** Makes one for endpoints that may be chosen now; never for none. It is made anew when they change. */
export type MakePicker = (endpoints: readonly Endpoint[]) => Picker;

/** What an endpoint counts now: its weight, or less while it warms up. */
export type WeightOf = (endpoint: Endpoint) => number;

export const staticWeight: WeightOf = (endpoint) => endpoint.weight;

export interface SlowStart {
  readonly windowMs: number;
  /** 1: linear; above: faster at first. */
  readonly aggression: number;
  /** Of the endpoint's weight, 0 to 1. */
  readonly minimumShare: number;
}

/** An endpoint that has just come takes less than its share until the window is over (envoy cluster.proto `SlowStartConfig`). */
export function warmingWeight({ windowMs, aggression, minimumShare }: SlowStart, now: () => number): WeightOf {
  return (endpoint) => {
    const age = now() - endpoint.inServiceSince;
    if (age >= windowMs) return endpoint.weight;
    return endpoint.weight * Math.max(minimumShare, (Math.max(1, age) / windowMs) ** (1 / aggression));
  };
}

/** Each in turn. With unequal weights in the order of earliest deadline: who has twice the weight comes back in half the time, not twice in a row. */
export function roundRobin(weightOf: WeightOf, random: () => number): MakePicker {
  return (endpoints) => {
    if (weightOf !== staticWeight || !hasEqualWeights(endpoints)) return earliestDeadline(endpoints, weightOf, random);
    // Proxies that began together shall not all begin with the same one.
    let next = (random() * endpoints.length) | 0;
    return () => {
      next = next >= endpoints.length - 1 ? 0 : next + 1;
      return endpoints[next]!;
    };
  };
}

/** A binary heap of deadlines: taking the first and putting it back costs O(log n). */
function earliestDeadline(endpoints: readonly Endpoint[], weightOf: WeightOf, random: () => number): Picker {
  const heap = endpoints.map((endpoint, order) => ({ endpoint, order, deadline: 1 / Math.max(1e-9, weightOf(endpoint)) }));
  const comesBefore = (a: number, b: number) =>
    heap[a]!.deadline < heap[b]!.deadline || (heap[a]!.deadline === heap[b]!.deadline && heap[a]!.order < heap[b]!.order);
  const sink = (from: number) => {
    for (let at = from; ; ) {
      let least = 2 * at + 1;
      if (least >= heap.length) return;
      if (least + 1 < heap.length && comesBefore(least + 1, least)) least++;
      if (!comesBefore(least, at)) return;
      [heap[at], heap[least]] = [heap[least]!, heap[at]!];
      at = least;
    }
  };
  for (let i = (heap.length >> 1) - 1; i >= 0; i--) sink(i);
  let order = heap.length;
  const pick = () => {
    const first = heap[0]!;
    first.deadline += 1 / Math.max(1e-9, weightOf(first.endpoint));
    first.order = order++;
    sink(0);
    return first.endpoint;
  };
  for (let skipped = (random() * Math.min(heap.length, 100)) | 0; skipped > 0; skipped--) pick();
  return pick;
}

/** Uniform, or in proportion to the weights. */
export function randomChoice(random: () => number): MakePicker {
  return (endpoints) => {
    if (hasEqualWeights(endpoints)) return () => endpoints[(random() * endpoints.length) | 0]!;
    const sums = new Float64Array(endpoints.length);
    let total = 0;
    for (const [i, { weight }] of endpoints.entries()) {
      total += weight;
      sums[i] = total;
    }
    return () => {
      const wanted = random() * total;
      let from = 0;
      let to = sums.length - 1;
      while (from < to) {
        const middle = (from + to) >>> 1;
        if (sums[middle]! <= wanted) from = middle + 1;
        else to = middle;
      }
      return endpoints[from]!;
    };
  };
}

/**
 * Least request with N random choices (envoy cluster.proto `LeastRequestLbConfig`, N = 2). With unequal weights in turn, as round robin, each weight
 * divided by what the endpoint has under way, this request included.
 */
export function leastRequest(choices: number, weightOf: WeightOf, random: () => number): MakePicker {
  return (endpoints) => {
    if (weightOf !== staticWeight || !hasEqualWeights(endpoints))
      return earliestDeadline(endpoints, (endpoint) => weightOf(endpoint) / (endpoint.activeRequests + 1), random);
    return () => {
      let best = endpoints[(random() * endpoints.length) | 0]!;
      for (let i = 1; i < choices; i++) {
        const other = endpoints[(random() * endpoints.length) | 0]!;
        if (other.activeRequests < best.activeRequests) best = other;
      }
      return best;
    };
  };
}

function hasEqualWeights(endpoints: readonly Endpoint[]): boolean {
  const { weight } = endpoints[0]!;
  return endpoints.every((endpoint) => endpoint.weight === weight);
}
