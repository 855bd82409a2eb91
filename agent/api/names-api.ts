/** What the routes need of a running agent for names of services, one method an endpoint. As AgentApi, which it is a part of. */
import type { DnsConfView, NameList } from './names-contract.ts'

export interface NamesApi {
  list(): NameList
  /** @throws {AgentError} `failed` when DNS is off. */
  dnsConf(): DnsConfView
}
