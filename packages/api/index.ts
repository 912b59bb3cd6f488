/** Resource kinds: their schemas, types and decoding with positions. */

export { yamlLimits } from '@mizzen/common/bounded-yaml';
export { type DecodedObject, decodeObject } from './decode-object.ts';
export { type DecodedFile, decodeYaml, describeProblem } from './decode-yaml.ts';
export {
  type Column,
  explainUnknownKind,
  findKind,
  findKindByPlural,
  findKindByWord,
  type Kind,
  kinds,
  objectSchemaOf,
  preferredApiVersion,
  schemaHasStatus,
} from './kinds.ts';
export { groupOf, type ManagedFieldsEntry, nameOf, type ObjectMeta, type Problem, type Resource, type SourcedResource, versionOf } from './resource.ts';
export type { Schema } from './schema.ts';
export { dryRunAnnotation } from './semantics/annotations.ts';
export { localityProblems } from './semantics/destination-rule.ts';
export { grpcStatusNames, grpcStatusOf } from './semantics/grpc-status.ts';
export type * from './types/api.ts';
export type * from './types/authorization-policy.ts';
export type * from './types/certificate.ts';
export type * from './types/destination-rule.ts';
export type * from './types/gateway.ts';
export type * from './types/messaging.ts';
export type * from './types/request-authentication.ts';
export type * from './types/service.ts';
export type * from './types/virtual-service.ts';
export type * from './types/workload.ts';
export { isPlainObject, validate } from './validate.ts';
