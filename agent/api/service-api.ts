/** What the routes need of a running agent for services, one method an endpoint. As AgentApi, which it is a part of. */
import type {
  AddServiceRequest,
  ConnectionList,
  DrainRequest,
  ForwardEvent,
  ForwardRequest,
  ServiceDetail,
  ServiceList,
  TraceResult,
} from './service-contract.ts'

type Awaitable<T> = T | Promise<T>

export interface ServiceApi {
  services(network?: string): Awaitable<ServiceList>
  /** `name` is a service of the network, or `web.home.internal`. */
  service(name: string, network?: string): Awaitable<ServiceDetail>
  add(request: AddServiceRequest): Awaitable<ServiceDetail>
  drain(request: DrainRequest): Awaitable<ServiceDetail>
  remove(name: string, network?: string): Awaitable<ServiceDetail>
  connections(): Awaitable<ConnectionList>
  /** Opens it and closes it again. */
  trace(name: string, signal: AbortSignal): Promise<TraceResult>
  /** Until the signal. */
  forward(request: ForwardRequest, emit: (event: ForwardEvent) => void, signal: AbortSignal): Promise<void>
}
