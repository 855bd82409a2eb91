/** `agent nix-conf`: what nix.conf needs so that Nix installs from this agent. */
import type { NixConfView } from '../api/contract.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'

export function addNixConf(line: CommandLine): void {
  const command = line.command({
    usage: 'nix-conf',
    summary: 'the lines that nix.conf needs to use this agent as a binary cache',
    examples: [
      ['nix-conf', 'read them'],
      ['nix-conf | sudo tee -a /etc/nix/nix.conf', 'add them; then restart nix-daemon'],
    ],
  })
  line.asks(command, async ({ client, terminal, isJson }) => {
    const view = await client.get<NixConfView>('nix-conf')
    if (isJson) return terminal.json(view)
    terminal.print(...view.lines.map(printable))
    if (terminal.isInteractive)
      terminal.note('', 'Add these to /etc/nix/nix.conf, then: sudo systemctl restart nix-daemon')
  })
}
