"""Frontier: helpfulness against harmlessness, at the end of RL and at matched KL, along RL, and who wins."""

from reports import dashboard, figures, figures_matched

run = dashboard.begin("Frontier")
for draw in (
    figures.frontier,
    figures_matched.frontier_matched_kl,
    figures.elo_along,
    figures.win_rates,
    figures.pm_score,
    figures.harmfulness,
):
    dashboard.show(run, draw)
