export { isWithheld, refuseUnsupported, registeredFields, supportedFields, withholdFeatures } from '@mizzen/gateway/supported-fields';
