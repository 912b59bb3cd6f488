import type { Any } from '@bufbuild/protobuf/wkt';
import { durationFromMs } from '@mizzen/envoy-api';
import type { Service } from '../registry/service.ts';

/** The route table of an inbound port: everything goes to the application. `name` is the port's. */
export function inboundRoutes(cluster: string, name: string, service: Service | undefined, typedPerFilterConfig: Readonly<Record<string, Any>>) {
  return {
    name: cluster,
    validateClusters: false,
    virtualHosts: [
      {
        name: `inbound|http|${name}`,
        domains: ['*'],
        typedPerFilterConfig,
        routes: [
          {
            name: 'default',
            match: { pathSpecifier: { case: 'prefix' as const, value: '/' } },
            action: { case: 'route' as const, value: { clusterSpecifier: { case: 'cluster' as const, value: cluster }, timeout: durationFromMs(0) } },
          },
        ],
        ...(service
          ? { metadata: { filterMetadata: { istio: { services: [{ host: service.hostname, name: service.name, namespace: service.namespace }] } } } }
          : {}),
      },
    ],
  };
}
