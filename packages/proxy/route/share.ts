import { type FractionalPercent, FractionalPercent_DenominatorType } from '@mizzen/envoy-api/gen/envoy/type/v3/percent_pb.js';

/** A share of all requests, 0 to 1 (envoy percent.proto `FractionalPercent`). */
export function shareOf(percent: FractionalPercent): number {
  const denominator =
    percent.denominator === FractionalPercent_DenominatorType.MILLION
      ? 1_000_000
      : percent.denominator === FractionalPercent_DenominatorType.TEN_THOUSAND
        ? 10_000
        : 100;
  return Math.min(1, percent.numerator / denominator);
}
