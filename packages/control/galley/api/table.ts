import type { Kind, Resource } from '@mizzen/api';
import { formatDurationMs } from '@mizzen/common';

/** The server-side printed form of objects, which `kubectl get` and `mizzen get` show (meta.k8s.io/v1 Table). */
export function toTable(kind: Kind, resources: readonly Resource[], resourceVersion: string, includeObject: string, now: Date, withHeader = true): unknown {
  const columns = [
    { name: 'Name', type: 'string', format: 'name', description: 'The name of the object', priority: 0 },
    ...kind.columns.map((column) => ({ name: column.name, type: column.type, format: '', description: column.path, priority: 0 })),
    { name: 'Age', type: 'string', format: '', description: 'The time since the object was created', priority: 0 },
  ];
  return {
    kind: 'Table',
    apiVersion: 'meta.k8s.io/v1',
    metadata: { resourceVersion },
    columnDefinitions: withHeader ? columns : [],
    rows: resources.map((resource) => ({
      cells: [resource.metadata.name, ...kind.columns.map((column) => cell(resource, column.path)), age(resource, now)],
      object:
        includeObject === 'None'
          ? undefined
          : includeObject === 'Object'
            ? resource
            : { kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1', metadata: resource.metadata },
    })),
  };
}

function cell(resource: Resource, path: string): string {
  let values: unknown[] = [resource];
  for (const name of path.split('.')) {
    values = values.flatMap((value) => (name === '*' ? (Array.isArray(value) ? value : []) : [(value as Record<string, unknown> | undefined | null)?.[name]]));
  }
  const found = values.filter((value) => value !== undefined && value !== null);
  if (found.length === 0) return '';
  if (found.length === 1) return typeof found[0] === 'object' ? JSON.stringify(found[0]) : String(found[0]);
  return found.join(',');
}

function age(resource: Resource, now: Date): string {
  const created = resource.metadata.creationTimestamp;
  return created ? formatDurationMs(Math.max(1000, now.getTime() - Date.parse(created))) : '<unknown>';
}
