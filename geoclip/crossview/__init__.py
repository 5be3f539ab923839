"""Cross-view geolocation as Sample4Geo does it: which satellite image shows the place of this photo?

The images of a split come from `cvusa`, `cvact`, `vigor` and `university1652`; `data` makes batches of them,
`training` the model, `retrieval` the metrics, `fit` runs a recipe.
"""
