import { MizzenError } from '@mizzen/common';
import type { Exchange } from '../http/exchange.ts';
import type { FilterKind } from './filter.ts';

/** A service that answers inside this process: what another package than this one puts behind our HTTP. */
export interface LocalService {
  /** Answers the exchange, now or later. */
  handle(exchange: Exchange): void;
}

const name = 'mizzen.filters.http.local_service';
export const localServiceState = name;

/** mizzen.filters.http.local_service: requests end here. Only engines that were given such a service know it. */
export const localService: FilterKind = {
  name,
  create(_any, place, { filterStates }) {
    const service = filterStates.get(localServiceState) as LocalService | undefined;
    if (service === undefined) throw new MizzenError('unsupported-filter', `${place}: this proxy has no local service`);
    return {
      name,
      onRequest(exchange) {
        service.handle(exchange);
        return 'stop';
      },
    };
  },
};
