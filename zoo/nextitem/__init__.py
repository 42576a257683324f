"""What next-item networks share, for plugins beside ``zoo.plugin``: windows of histories, losses over the catalogue, training, scoring.

``params`` is light; the other modules import torch, so a plugin imports them inside functions. A plugin brings a subclass of
``network.Network`` with one method, ``states``, and hands it to ``model.fit_next_item``; ``plugins/gpt`` is the whole of one.
"""
