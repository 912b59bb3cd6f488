import type { Endpoint } from './endpoint.ts';

/** Chooses one of the healthy endpoints. `endpoints` is never empty. */
export type Picker = (endpoints: readonly Endpoint[]) => Endpoint;

/** Each in turn; with unequal weights the smooth form, which spreads a heavy endpoint's turns (as nginx does). */
export function roundRobin(): Picker {
  let next = 0;
  return (endpoints) => {
    if (hasEqualWeights(endpoints)) {
      next = next >= endpoints.length - 1 ? 0 : next + 1;
      return endpoints[next]!;
    }
    let best = endpoints[0]!;
    let total = 0;
    for (const endpoint of endpoints) {
      endpoint.currentWeight += endpoint.weight;
      total += endpoint.weight;
      if (endpoint.currentWeight > best.currentWeight) best = endpoint;
    }
    best.currentWeight -= total;
    return best;
  };
}

/** Uniform, or in proportion to the weights. */
export function randomChoice(random: () => number): Picker {
  return (endpoints) => {
    if (hasEqualWeights(endpoints)) return endpoints[(random() * endpoints.length) | 0]!;
    let at = random() * endpoints.reduce((sum, endpoint) => sum + endpoint.weight, 0);
    for (const endpoint of endpoints) {
      at -= endpoint.weight;
      if (at < 0) return endpoint;
    }
    return endpoints[endpoints.length - 1]!;
  };
}

/** Least request with N random choices (envoy cluster.proto `LeastRequestLbConfig`, N = 2), active requests weighed by weight. */
export function leastRequest(choices: number, random: () => number): Picker {
  return (endpoints) => {
    let best = endpoints[(random() * endpoints.length) | 0]!;
    for (let i = 1; i < choices; i++) {
      const other = endpoints[(random() * endpoints.length) | 0]!;
      // The request that is being placed counts too, so that weights matter when all are idle.
      if ((other.activeRequests + 1) * best.weight < (best.activeRequests + 1) * other.weight) best = other;
    }
    return best;
  };
}

function hasEqualWeights(endpoints: readonly Endpoint[]): boolean {
  const { weight } = endpoints[0]!;
  for (let i = 1; i < endpoints.length; i++) if (endpoints[i]!.weight !== weight) return false;
  return true;
}
