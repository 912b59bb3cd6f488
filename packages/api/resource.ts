import type { Origin } from '@mizzen/common';

/** A Kubernetes-shaped object. `spec` and the other fields are checked by the kind's schema before anything reads them. */
export interface Resource<Spec = unknown> {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: ObjectMeta;
  readonly spec: Spec;
  readonly status?: unknown;
  /** Kinds such as Secret and ConfigMap keep their content beside `spec`. */
  readonly [field: string]: unknown;
}

export interface ObjectMeta {
  readonly name: string;
  readonly namespace?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly uid?: string;
  readonly resourceVersion?: string;
  readonly generation?: number;
  readonly creationTimestamp?: string;
  readonly deletionTimestamp?: string;
  readonly finalizers?: readonly string[];
  readonly generateName?: string;
  readonly managedFields?: readonly ManagedFieldsEntry[];
  readonly ownerReferences?: readonly unknown[];
}

/** Who set which fields, as server-side apply keeps it (Kubernetes `metav1.ManagedFieldsEntry`). */
export interface ManagedFieldsEntry {
  readonly manager: string;
  readonly operation: 'Apply' | 'Update';
  readonly apiVersion: string;
  readonly time?: string;
  readonly fieldsType: 'FieldsV1';
  readonly fieldsV1: Readonly<Record<string, unknown>>;
  readonly subresource?: string;
}

/** A resource together with where it came from. */
export interface SourcedResource<Spec = unknown> {
  readonly resource: Resource<Spec>;
  readonly origin: Origin;
}

/** One thing that is wrong with a resource. */
export interface Problem {
  /** Stable, for tests and searches: `unknown-field`, `wrong-type`, `missing-field`, `invalid-value`, `invalid-yaml`, `unknown-kind`. */
  readonly code: string;
  /** The field's path, `spec.http[0].match`; empty for the whole document. */
  readonly path: string;
  /** What is wrong and what to do. */
  readonly message: string;
  /** 1-based position in the source, where there is one. */
  readonly line?: number;
  readonly column?: number;
}

/** `VirtualService default/reviews`, as messages name an object. */
export function nameOf(resource: Resource): string {
  return `${resource.kind} ${resource.metadata.namespace ? `${resource.metadata.namespace}/` : ''}${resource.metadata.name}`;
}

/** The group part of an `apiVersion`; empty for the core group. */
export function groupOf(apiVersion: string): string {
  const slash = apiVersion.indexOf('/');
  return slash < 0 ? '' : apiVersion.slice(0, slash);
}

/** The version part of an `apiVersion`. */
export function versionOf(apiVersion: string): string {
  return apiVersion.slice(apiVersion.indexOf('/') + 1);
}
