import type { Resource, ServiceSpec } from '@mizzen/api';

/** Fills in what the API of a kind defaults when it is written, so that readers find it set. */
export function withDefaults(resource: Resource): Resource {
  if (resource.kind === 'Service' && resource.apiVersion === 'v1') {
    const spec = (resource.spec ?? {}) as ServiceSpec;
    const ports = spec.ports?.map((port) => ({ protocol: 'TCP', targetPort: port.port, ...port }));
    return { ...resource, spec: { type: 'ClusterIP', ...spec, ...(ports ? { ports } : {}) } };
  }
  if (resource.kind === 'Namespace') {
    return {
      ...resource,
      spec: { finalizers: ['kubernetes'] },
      status: { phase: 'Active' },
      metadata: { ...resource.metadata, labels: { ...resource.metadata.labels, 'kubernetes.io/metadata.name': resource.metadata.name } },
    };
  }
  if (resource.kind === 'Secret' && resource['stringData']) {
    const { stringData, ...rest } = resource as Resource & { stringData: Record<string, string> };
    const encoded = Object.fromEntries(Object.entries(stringData).map(([name, text]) => [name, Buffer.from(text).toString('base64')]));
    return { ...rest, data: { ...(rest['data'] as object | undefined), ...encoded } } as Resource;
  }
  return resource;
}
