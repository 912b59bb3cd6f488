import { MizzenError } from '@mizzen/common';
import { durationToMs, durationToTimerMs } from '@mizzen/envoy-api';
import { RequestMethod } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import {
  HealthCheck_GrpcHealthCheckSchema,
  HealthCheck_HttpHealthCheckSchema,
  HealthCheck_TcpHealthCheckSchema,
  type HealthCheck as HealthCheckMessage,
  HealthCheckSchema,
} from '@mizzen/envoy-api/gen/envoy/config/core/v3/health_check_pb.js';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { HealthCheck } from './health-checker.ts';

/** Intervals have a jitter of their own; connections are those of the cluster's pool, so they are always used again. */
const supported = supportedFields(HealthCheckSchema, [
  ...['timeout', 'interval', 'unhealthyThreshold', 'healthyThreshold', 'reuseConnection', 'httpHealthCheck', 'tcpHealthCheck', 'grpcHealthCheck'],
  ...['intervalJitter', 'intervalJitterPercent', 'initialJitter'],
]);

/** core health_check.proto `HealthCheck`. */
export function compileHealthCheck(message: HealthCheckMessage, clusterPlace: string): HealthCheck {
  const place = `${clusterPlace}, health_checks`;
  refuseUnsupported(HealthCheckSchema, message, supported, place);
  const [intervalMs, timeoutMs] = [durationToMs(message.interval), durationToTimerMs(message.timeout)];
  if (!intervalMs || !timeoutMs || !message.unhealthyThreshold || !message.healthyThreshold)
    throw new MizzenError('invalid-health-check', `${place}: interval, timeout, unhealthy_threshold and healthy_threshold must be given and above 0`);
  const common = { intervalMs, timeoutMs, unhealthyThreshold: message.unhealthyThreshold, healthyThreshold: message.healthyThreshold };
  const { healthChecker } = message;
  switch (healthChecker.case) {
    case 'tcpHealthCheck':
      refuseUnsupported(HealthCheck_TcpHealthCheckSchema, healthChecker.value, new Set(), place);
      return { ...common, kind: { name: 'tcp' } };
    case 'grpcHealthCheck':
      refuseUnsupported(HealthCheck_GrpcHealthCheckSchema, healthChecker.value, new Set(['serviceName', 'authority']), place);
      return { ...common, kind: { name: 'grpc', authority: healthChecker.value.authority, service: healthChecker.value.serviceName } };
    case 'httpHealthCheck': {
      // `codec_client_type`: the version of HTTP is the one that the cluster speaks anyway.
      const { host, path, method, expectedStatuses } = healthChecker.value;
      refuseUnsupported(
        HealthCheck_HttpHealthCheckSchema,
        healthChecker.value,
        new Set(['host', 'path', 'method', 'expectedStatuses', 'codecClientType']),
        place,
      );
      if (!path.startsWith('/')) throw new MizzenError('invalid-health-check', `${place}: http_health_check.path must begin with /`);
      const ranges = expectedStatuses.map(({ start, end }) => [Number(start), Number(end)] as const);
      const expects = (status: number) => (ranges.length === 0 ? status === 200 : ranges.some(([start, end]) => status >= start && status < end));
      return { ...common, kind: { name: 'http', host, path, method: method === RequestMethod.METHOD_UNSPECIFIED ? 'GET' : RequestMethod[method], expects } };
    }
    default:
      throw new MizzenError('invalid-health-check', `${place}: one of http_health_check, tcp_health_check and grpc_health_check is needed`);
  }
}
