import { create } from '@bufbuild/protobuf';
import { type NameTable, NameTableSchema } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { serviceAddresses } from './service-addresses.ts';
import { visibleServices } from './sidecar-scope.ts';

/** NDS: the names that the mesh knows and the addresses by which a sidecar knows them, as Istio's name table has them. */
export function nameTable(view: ProxyView, snapshot: MeshSnapshot): NameTable {
  const table: Record<string, { ips: string[]; registry: string; shortname: string; namespace: string }> = {};
  for (const service of visibleServices(view, snapshot)) {
    const ips = service.isHeadless
      ? service.instances.filter((instance) => instance.isHealthy).map((instance) => instance.address)
      : serviceAddresses(service, view, snapshot).filter((address) => !address.includes('/'));
    if (ips.length === 0) continue;
    const isOfKubernetes = service.kind === 'Service';
    table[service.hostname] = {
      ips: [...new Set(ips)],
      registry: isOfKubernetes ? 'Kubernetes' : 'External',
      shortname: isOfKubernetes ? service.name : '',
      namespace: isOfKubernetes ? service.namespace : '',
    };
  }
  return create(NameTableSchema, { table });
}
