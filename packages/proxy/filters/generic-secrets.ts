import { MizzenError } from '@mizzen/common';
import type { SdsSecretConfig } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import type { Exchange } from '../http/exchange.ts';

/** Generic secrets of filters: a route's configuration names them, SDS brings them, and a request that needs one that has not arrived is refused. */
export interface NeedsSecrets {
  /** The generic secrets that SDS is asked for. */
  readonly secretNames?: readonly string[];
}

/** The name of a secret that a configuration refers to. Throws MizzenError when there is none, or when it comes from a place that is not supported. */
export function secretNameOf(config: SdsSecretConfig | undefined, field: string, place: string): string {
  if (config === undefined || config.name === '') throw new MizzenError('invalid-filter', `${place}: ${field} must name a generic secret of SDS`);
  const source = config.sdsConfig?.configSourceSpecifier.case;
  if (source !== undefined && source !== 'ads')
    throw new MizzenError('unsupported-filter', `${place}: ${field} must come from ads or from static secrets, not from ${source}`);
  return config.name;
}

/** Refuses a request for want of a secret. Its name is for the log of the proxy (xds/awaited-secrets.ts), not for the client. */
export function refuseWithoutSecret(exchange: Exchange, filter: string): 'stop' {
  exchange.settings.context.counters.countRejection(filter, 'missing_secret');
  const detail = 'a secret that this route needs has not arrived from the control plane';
  exchange.replyProblem(503, { title: 'Service Unavailable', detail }, 'missing_secret', [['retry-after', '1']]);
  return 'stop';
}
