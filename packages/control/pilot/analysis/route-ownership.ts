import { describeOrigin } from '@mizzen/common';
import { appliesTo } from '../generate/virtual-service-routes.ts';
import { mayRoute } from '../route-ownership.ts';
import { type MeshSnapshot, resolveHost } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/** VirtualServices that name a service of another namespace and do not decide about the calls of others to it. */
export function routeOwnershipFindings(snapshot: MeshSnapshot): Finding[] {
  return snapshot.virtualServices.flatMap((virtualService) => {
    const { namespace, name, spec, origin } = virtualService;
    if (!appliesTo(virtualService, 'mesh')) return [];
    return (spec.hosts ?? []).flatMap((host, i): Finding[] => {
      const owner = snapshot.servicesByHostname.get(resolveHost(host, namespace, snapshot))?.namespace;
      if (mayRoute(snapshot.meshConfig.routeOwnership, namespace, owner, '')) return [];
      const path = `spec.hosts[${i}]`;
      const object = `VirtualService ${namespace}/${name}`;
      const place = origin.source === 'file' ? describeOrigin(origin, path) : '';
      const message = `${object} routes ${host} of namespace ${owner} for callers of namespace ${namespace} only: see crossNamespaceRoutes in docs/security.md.`;
      return [{ code: 'MZ0019', level: 'warning', object, path, place, message }];
    });
  });
}
