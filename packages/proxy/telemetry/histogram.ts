/** Upper bounds of the buckets, as Envoy's (and so Istio's) histograms have them. */
export const durationBoundsMs = [0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000];
export const sizeBoundsBytes = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/** Counts of values by bucket, with their sum; cheap to record, cumulated when it is read. */
export class Histogram {
  readonly bounds: readonly number[];
  readonly counts: Float64Array;
  sum: number;
  count: number;

  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.counts = new Float64Array(bounds.length + 1);
    this.sum = 0;
    this.count = 0;
  }

  record(value: number): void {
    const { bounds } = this;
    let i = 0;
    while (i < bounds.length && value > bounds[i]!) i++;
    this.counts[i]!++;
    this.sum += value;
    this.count++;
  }
}
