export { refuseUnsupported } from '@mizzen/gateway/supported-fields';
