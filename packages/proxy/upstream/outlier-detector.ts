import type { Cluster } from './cluster.ts';
import type { Endpoint } from './endpoint.ts';

/** envoy outlier_detection.proto `OutlierDetection`. Percentages are from 0 to 100; a threshold of 0 is never reached. */
export interface OutlierSettings {
  readonly consecutive5xx: Threshold;
  readonly consecutiveGatewayFailures: Threshold;
  /** Counts where `splitsLocalErrors`: failures to connect, and time-outs, apart from what servers answer. */
  readonly consecutiveLocalFailures: Threshold;
  readonly splitsLocalErrors: boolean;
  readonly intervalMs: number;
  readonly baseEjectionMs: number;
  readonly maxEjectionMs: number;
  readonly maxEjectionJitterMs: number;
  readonly maxEjectionPercent: number;
  readonly alwaysEjectsOne: boolean;
  readonly successRate: {
    readonly enforcing: number;
    readonly minimumHosts: number;
    readonly requestVolume: number;
    /** Standard deviations below the mean. */
    readonly factor: number;
  };
  readonly failurePercentage: { readonly enforcing: number; readonly minimumHosts: number; readonly requestVolume: number; readonly threshold: number };
}

export interface Threshold {
  readonly count: number;
  /** Of ejections that are due, so many percent are carried out. */
  readonly enforcing: number;
}

/** What is known of one endpoint. */
export class EndpointWatch {
  readonly #detector: OutlierDetector;
  readonly endpoint: Endpoint;
  isEjected: boolean;
  ejectedAt: number;
  /** How often it has been taken out lately; each time lasts longer. */
  timesEjected: number;
  jitterMs: number;
  successes: number;
  total: number;
  #serverErrors: number;
  #gatewayFailures: number;
  #localFailures: number;

  constructor(detector: OutlierDetector, endpoint: Endpoint) {
    this.#detector = detector;
    this.endpoint = endpoint;
    this.isEjected = false;
    this.ejectedAt = 0;
    this.timesEjected = 0;
    this.jitterMs = 0;
    this.successes = 0;
    this.total = 0;
    this.#serverErrors = 0;
    this.#gatewayFailures = 0;
    this.#localFailures = 0;
  }

  /** The endpoint has answered with this status; gRPC's are given as their HTTP counterparts. */
  onStatus(status: number): void {
    const { settings } = this.#detector;
    if (settings.splitsLocalErrors) this.#localFailures = 0;
    this.#count(status);
  }

  /** It could not be reached, broke off, or took too long: 503 or 504, as a client would hear. */
  onLocalFailure(status: number): void {
    const { settings } = this.#detector;
    if (!settings.splitsLocalErrors) return this.#count(status);
    if (++this.#localFailures === settings.consecutiveLocalFailures.count) {
      this.#localFailures = 0;
      this.#detector.eject(this, settings.consecutiveLocalFailures.enforcing);
    }
  }

  #count(status: number): void {
    const { settings } = this.#detector;
    this.total++;
    if (status < 500) {
      this.successes++;
      this.#serverErrors = 0;
      this.#gatewayFailures = 0;
      return;
    }
    if (status < 502 || status > 504) this.#gatewayFailures = 0;
    else if (++this.#gatewayFailures === settings.consecutiveGatewayFailures.count) {
      this.#gatewayFailures = 0;
      this.#detector.eject(this, settings.consecutiveGatewayFailures.enforcing);
    }
    if (++this.#serverErrors === settings.consecutive5xx.count) {
      this.#serverErrors = 0;
      this.#detector.eject(this, settings.consecutive5xx.enforcing);
    }
  }
}

/** Takes endpoints out for a while that answer worse than they should (envoy "Outlier detection"). */
export class OutlierDetector {
  readonly settings: OutlierSettings;
  readonly #cluster: Cluster;
  readonly #random: () => number;
  #watches: readonly EndpointWatch[];
  #checkedAt: number;
  ejectedCount: number;

  constructor(cluster: Cluster, settings: OutlierSettings, random: () => number) {
    this.settings = settings;
    this.#cluster = cluster;
    this.#random = random;
    this.#watches = [];
    this.#checkedAt = performance.now();
    this.ejectedCount = 0;
  }

  watch(endpoints: readonly Endpoint[]): void {
    this.#watches = endpoints.map((endpoint) => {
      endpoint.outlier ??= new EndpointWatch(this, endpoint);
      return endpoint.outlier;
    });
    this.ejectedCount = this.#watches.reduce((sum, { isEjected }) => sum + Number(isEjected), 0);
  }

  eject(watch: EndpointWatch, enforcing: number): void {
    if (watch.isEjected || watch.endpoint.isRemoved) return;
    const { maxEjectionPercent, alwaysEjectsOne, baseEjectionMs, maxEjectionMs, maxEjectionJitterMs } = this.settings;
    const isWithinLimit = (100 * (this.ejectedCount + 1)) / this.#watches.length <= maxEjectionPercent || (alwaysEjectsOne && this.ejectedCount === 0);
    if (!isWithinLimit) {
      this.#cluster.counters.outlierEjectionsOverflow++;
      return;
    }
    if (enforcing < 100 && this.#random() * 100 >= enforcing) return;
    watch.isEjected = true;
    watch.ejectedAt = performance.now();
    watch.jitterMs = this.#random() * maxEjectionJitterMs;
    if (watch.timesEjected * baseEjectionMs < maxEjectionMs) watch.timesEjected++;
    this.ejectedCount++;
    this.#cluster.counters.outlierEjections++;
    this.#cluster.healthChanged();
  }

  /** `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    if (now - this.#checkedAt < this.settings.intervalMs) return;
    this.#checkedAt = now;
    this.#judgeRates();
    let hasChanged = false;
    for (const watch of this.#watches) {
      watch.successes = 0;
      watch.total = 0;
      if (!watch.isEjected) {
        // Good conduct is rewarded.
        if (watch.timesEjected > 0) watch.timesEjected--;
        continue;
      }
      const lastsMs = Math.min(this.settings.baseEjectionMs * watch.timesEjected, Math.max(this.settings.maxEjectionMs, this.settings.baseEjectionMs));
      if (now - watch.ejectedAt < lastsMs + watch.jitterMs) continue;
      watch.isEjected = false;
      watch.endpoint.inServiceSince = now;
      this.ejectedCount--;
      hasChanged = true;
    }
    if (hasChanged) this.#cluster.healthChanged();
  }

  /** By success rate and by failures, of those with enough requests in this interval. */
  #judgeRates(): void {
    const { successRate, failurePercentage } = this.settings;
    if (successRate.enforcing > 0) {
      const counted = this.#watches.filter(({ total, isEjected }) => total >= successRate.requestVolume && total > 0 && !isEjected);
      if (counted.length >= Math.max(1, successRate.minimumHosts)) {
        const rates = counted.map(({ successes, total }) => (100 * successes) / total);
        const mean = rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
        const deviation = Math.sqrt(rates.reduce((sum, rate) => sum + (rate - mean) ** 2, 0) / rates.length);
        for (const [i, watch] of counted.entries()) if (rates[i]! < mean - successRate.factor * deviation) this.eject(watch, successRate.enforcing);
      }
    }
    if (failurePercentage.enforcing > 0) {
      const counted = this.#watches.filter(({ total, isEjected }) => total >= failurePercentage.requestVolume && total > 0 && !isEjected);
      if (counted.length >= failurePercentage.minimumHosts)
        for (const watch of counted)
          if (100 * (1 - watch.successes / watch.total) >= failurePercentage.threshold) this.eject(watch, failurePercentage.enforcing);
    }
  }
}
