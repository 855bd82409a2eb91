/** What `agent doctor` says of a running agent: its warnings, and what is well. */
import type { Check, DoctorResult, Warning } from '../api/contract.ts'

export type Examined = { warnings: readonly Warning[]; peerCount: number; hasNix: boolean }

export function doctorOf({ warnings, peerCount, hasNix }: Examined): DoctorResult {
  const checks: Check[] = [
    { name: 'peers', state: peerCount > 0 ? 'ok' : 'warning', message: `${peerCount} connected` },
    {
      name: 'nix',
      state: 'ok',
      message: hasNix ? 'the Nix store can be read' : 'no Nix store on this machine; files and folders work',
    },
  ]
  const told = warnings.map(
    ({ code, message, next }): Check => ({ name: code.split('.')[0] ?? code, state: 'warning', message, next }),
  )
  return { checks: [...checks, ...told] }
}
