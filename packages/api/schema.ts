import { readFileSync } from 'node:fs';

/**
 * The part of JSON schema that the kinds use, in the dialect of Kubernetes' CRDs. Generated at set-up (scripts/generate-schemas.mjs)
 * or, for Mizzen's own kinds, written in ./schemas.
 */
export interface Schema {
  readonly type?: 'object' | 'array' | 'string' | 'number' | 'integer' | 'boolean' | 'null';
  readonly description?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly additionalProperties?: Schema;
  readonly enum?: readonly (string | number | boolean)[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minItems?: number;
  readonly pattern?: string;
  readonly default?: unknown;
  readonly 'x-kubernetes-preserve-unknown-fields'?: boolean;
  readonly 'x-kubernetes-int-or-string'?: boolean;
  /** Groups of fields of which at most one may be set (a protobuf `oneof`). */
  readonly 'x-mizzen-one-of'?: readonly (readonly string[])[];
}

/** Reads a schema of this package by its path below the package's folder. */
export function readSchema(path: string): Schema {
  return JSON.parse(readFileSync(new URL(path, import.meta.url), 'utf8')) as Schema;
}
