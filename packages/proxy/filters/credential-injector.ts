import { type CredentialPerRoute, CredentialPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { utf8Bytes } from '../message/header-bytes.ts';
import type { FilterKind } from './filter.ts';
import { unpackConfig } from './unpack-config.ts';

const name = 'mizzen.filters.http.credential_injector';

/**
 * mizzen.filters.http.credential_injector: gives the calls of a workload the credential of somebody else's API, so that the application never
 * holds it. What the application itself sends in its place is replaced.
 */
export const credentialInjector: FilterKind = {
  name,
  create: () => ({
    name,
    onRequest(exchange) {
      const config = exchange.filterConfig(name) as CredentialPerRoute | undefined;
      if (config === undefined) return 'continue';
      if (config.header !== '') exchange.head.headers.set(config.header, utf8Bytes(config.value));
      else {
        const { target } = exchange.head;
        const cut = target.indexOf('?');
        const parameter = encodeURIComponent(config.queryParameter);
        const others =
          cut < 0
            ? []
            : target
                .slice(cut + 1)
                .split('&')
                .filter((part) => part !== '' && part.split('=', 1)[0] !== parameter);
        exchange.retarget(`${cut < 0 ? target : target.slice(0, cut)}?${[...others, `${parameter}=${encodeURIComponent(config.value)}`].join('&')}`);
      }
      return 'continue';
    },
  }),
  compileRoute: (any, place) => {
    const config = unpackConfig(CredentialPerRouteSchema, any, place);
    return { ...config, header: config.header.toLowerCase(), secretParameters: config.queryParameter === '' ? [] : [config.queryParameter] };
  },
};
