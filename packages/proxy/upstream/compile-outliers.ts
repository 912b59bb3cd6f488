import { durationToMs } from '@mizzen/envoy-api';
import { type OutlierDetection, OutlierDetectionSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/outlier_detection_pb.js';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { OutlierSettings } from './outlier-detector.ts';

const supported = supportedFields(OutlierDetectionSchema, [
  ...['consecutive5xx', 'consecutiveGatewayFailure', 'consecutiveLocalOriginFailure', 'interval', 'baseEjectionTime', 'maxEjectionPercent'],
  ...['enforcingConsecutive5xx', 'enforcingConsecutiveGatewayFailure', 'enforcingConsecutiveLocalOriginFailure', 'splitExternalLocalOriginErrors'],
  ...['enforcingSuccessRate', 'successRateMinimumHosts', 'successRateRequestVolume', 'successRateStdevFactor', 'enforcingLocalOriginSuccessRate'],
  ...['failurePercentageThreshold', 'enforcingFailurePercentage', 'enforcingFailurePercentageLocalOrigin', 'failurePercentageMinimumHosts'],
  ...['failurePercentageRequestVolume', 'maxEjectionTime', 'maxEjectionTimeJitter', 'alwaysEjectOneHost', 'successfulActiveHealthCheckUnejectHost'],
]);

/** Defaults are those of outlier_detection.proto. */
export function compileOutliers(message: OutlierDetection | undefined, place: string): OutlierSettings | undefined {
  if (message === undefined) return undefined;
  refuseUnsupported(OutlierDetectionSchema, message, supported, `${place}, outlier_detection`);
  const threshold = (count: number | undefined, enforcing: number) => ({ count: count ?? 5, enforcing });
  return {
    consecutive5xx: threshold(message.consecutive5xx, message.enforcingConsecutive5xx ?? 100),
    consecutiveGatewayFailures: threshold(message.consecutiveGatewayFailure, message.enforcingConsecutiveGatewayFailure ?? 0),
    consecutiveLocalFailures: threshold(message.consecutiveLocalOriginFailure, message.enforcingConsecutiveLocalOriginFailure ?? 100),
    splitsLocalErrors: message.splitExternalLocalOriginErrors,
    intervalMs: durationToMs(message.interval) ?? 10_000,
    baseEjectionMs: durationToMs(message.baseEjectionTime) ?? 30_000,
    maxEjectionMs: durationToMs(message.maxEjectionTime) ?? 300_000,
    maxEjectionJitterMs: durationToMs(message.maxEjectionTimeJitter) ?? 0,
    maxEjectionPercent: message.maxEjectionPercent ?? 10,
    alwaysEjectsOne: message.alwaysEjectOneHost ?? false,
    successRate: {
      enforcing: message.enforcingSuccessRate ?? 100,
      minimumHosts: message.successRateMinimumHosts ?? 5,
      requestVolume: message.successRateRequestVolume ?? 100,
      factor: (message.successRateStdevFactor ?? 1900) / 1000,
    },
    failurePercentage: {
      enforcing: message.enforcingFailurePercentage ?? 0,
      minimumHosts: message.failurePercentageMinimumHosts ?? 5,
      requestVolume: message.failurePercentageRequestVolume ?? 50,
      threshold: message.failurePercentageThreshold ?? 85,
    },
  };
}
